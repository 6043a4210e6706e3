"""Keys, names, TTLs: what is accepted, what is refused, and that the refusal names the field and a fix."""

from __future__ import annotations

import pytest

from streams.model.errors import BadInput
from streams.model.keys import KEY_BYTES_MAX, check_name, keyspace_of, murmur2, partition_for, validate_key
from streams.model.ttl import TTL_MS_MAX, parse_ttl_ms


@pytest.mark.parametrize(
    "key", ["score:alice", "device:42:telemetry", "kv:ключ/with spaces?", "kv:" + "x" * (KEY_BYTES_MAX - 3)]
)
def test_good_keys_are_their_own_bytes(key: str) -> None:
    assert validate_key(key) == key.encode()
    assert validate_key(key.encode()) == key.encode()


@pytest.mark.parametrize(
    "key",
    [
        "",
        "alice",
        ":alice",
        "score:",
        "Score:alice",
        "1score:a",
        b"score:\xff\xfe",
        "score:\ud800",
        "k" * 65 + ":a",
        "kv:" + "x" * 1_000_000,
    ],
)
def test_bad_keys_name_the_field_and_the_fix(key: str | bytes) -> None:
    with pytest.raises(BadInput) as caught:
        validate_key(key)
    assert caught.value.field == "key" and caught.value.fix


def test_keyspace_is_what_stands_before_the_first_colon() -> None:
    assert keyspace_of("device:42:telemetry") == keyspace_of(b"device:42:telemetry") == "device"


def test_murmur2_agrees_with_kafkas_own_vectors() -> None:
    # org.apache.kafka.common.utils.UtilsTest.testMurmur2
    vectors = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }
    for data, signed in vectors.items():
        assert murmur2(data) == signed & 0xFFFFFFFF
        assert partition_for(data, 7) == (signed & 0x7FFFFFFF) % 7


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [
        ("1h", 3_600_000),
        ("90s", 90_000),
        ("1.5m", 90_000),
        (1, 1_000),
        ("3600", 3_600_000),
        ("1000ms", 1_000),
        ("100y", TTL_MS_MAX),
    ],
)
def test_ttl_forms(text: str | int, expected_ms: int) -> None:
    assert parse_ttl_ms(text) == expected_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        0,
        -1,
        "-5s",
        "0.5",
        "1 fortnight",
        "nan",
        float("nan"),
        float("inf"),
        "101y",
        10**30,
        True,
        "1e9",
        "999ms",
    ],
)
def test_bad_ttls_name_the_field(text: str | int | float) -> None:
    with pytest.raises(BadInput) as caught:
        parse_ttl_ms(text)
    assert caught.value.field == "ttl" and caught.value.fix


@pytest.mark.parametrize("name", ["", "A", "1a", "a" * 65, "a b", "a/b", "ä", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadInput, match="name"):
        check_name(name, field="name")
