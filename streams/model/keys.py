"""Keys (`keyspace:rest`), their limits, and the partition that Kafka's default partitioner gives them."""

from __future__ import annotations

import re

from streams.model.errors import BadInput

KEY_BYTES_MAX = 1024
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}\Z")


def check_name(name: str, *, field: str) -> str:
    """`name` itself, if it can name a keyspace, table, region or UDF; BadInput names `field` otherwise."""
    if not _NAME.match(name):
        raise BadInput(
            f"{name[:80]!r} is not a name",
            field=field,
            fix="use 1 to 64 characters: a lower-case letter, then lower-case letters, digits, '-' or '_'",
        )
    return name


def is_name(text: str) -> bool:
    """Whether `text` can name a keyspace, table, region or UDF."""
    return _NAME.match(text) is not None


def validate_key(key: str | bytes) -> bytes:
    """The key's bytes. BadInput if it is empty, too long, not UTF-8, or has no keyspace."""
    try:
        raw = key.encode() if isinstance(key, str) else key
        raw.decode()
    except UnicodeError:
        raise BadInput("the key is not UTF-8", field="key", fix="encode the key as UTF-8") from None
    if not raw:
        raise BadInput("the key is empty", field="key", fix="use keyspace:rest, as in score:alice")
    if len(raw) > KEY_BYTES_MAX:
        raise BadInput(
            f"the key has {len(raw)} bytes, over the limit of {KEY_BYTES_MAX}", field="key", fix="use a shorter key"
        )
    head, colon, rest = raw.partition(b":")
    if not colon or not rest or not _NAME.match(head.decode()):
        raise BadInput("the key names no keyspace", field="key", fix="use keyspace:rest, as in score:alice")
    return raw


def keyspace_of(key: str | bytes) -> str:
    """The keyspace of a valid key: what stands before its first colon."""
    raw = key if isinstance(key, str) else key.decode()
    return raw.partition(":")[0]


def murmur2(data: bytes) -> int:
    """Kafka's 32-bit murmur2 (org.apache.kafka.common.utils.Utils.murmur2), as an unsigned integer."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    length = len(data)
    h = 0x9747B28C ^ length
    end = length & ~3
    for i in range(0, end, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ (k >> 24)) * m & mask)
    if length & 3:
        h = (h ^ int.from_bytes(data[end:], "little")) * m & mask
    h = (h ^ (h >> 13)) * m & mask
    return h ^ (h >> 15)


def partition_for(key: bytes, partitions: int) -> int:
    """The partition of `key` among `partitions`, as Kafka's default partitioner chooses it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
