"""Downloads that break: cut, altered, refused. A file has its name only when its checksum is right."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from streams.model.errors import StreamsError, Unavailable
from streams.region.jars import LOCK_FILE, FetchOptions, Jar, fetch, read_lock

BODY = bytes(range(256)) * 400
JAR = Jar("kafka", "org.example:thing:1.0", len(BODY), hashlib.sha256(BODY).hexdigest())
Answer = tuple[int, bytes, int]  # status, body, the Content-Length to claim


@dataclass
class Repository:
    """A Maven repository of one file that misbehaves as told: each answer is used once, the last for ever."""

    url: str = ""
    answers: list[Callable[[int], Answer]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def repository() -> Iterator[Repository]:
    state = Repository()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            status, body, length = answer(int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0)
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


def whole(start: int) -> Answer:
    return (206 if start else 200), BODY[start:], len(BODY) - start


def cut(start: int) -> Answer:
    return 200, BODY[:70_000], len(BODY)


def wrong(start: int) -> Answer:
    return 200, bytes(len(BODY)), len(BODY)


def broken(start: int) -> Answer:
    return 503, b"", 0


def get(repository: Repository, directory: Path, attempts: int = 4) -> Path:
    (path,) = fetch([JAR], directory, FetchOptions(repository.url, attempts=attempts, backoff_s=0.01, quiet=True))
    return path


def test_a_cut_download_is_resumed(repository: Repository, tmp_path: Path) -> None:
    repository.answers = [cut, whole]
    assert get(repository, tmp_path).read_bytes() == BODY
    assert repository.ranges == [None, "bytes=65536-"]  # whole chunks are kept


def test_a_partial_file_of_an_earlier_run_is_resumed(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / f"{JAR.filename}.part").write_bytes(BODY[:5000])
    repository.answers = [whole]
    assert get(repository, tmp_path).read_bytes() == BODY
    assert repository.ranges == ["bytes=5000-"]


def test_a_corrupt_partial_file_is_thrown_away(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / f"{JAR.filename}.part").write_bytes(b"x" * 5000)
    repository.answers = [whole]
    assert get(repository, tmp_path).read_bytes() == BODY
    assert repository.ranges == ["bytes=5000-", None]


@pytest.mark.parametrize("first", [wrong, broken])
def test_wrong_bytes_and_errors_are_tried_again(
    repository: Repository, tmp_path: Path, first: Callable[[int], Answer]
) -> None:
    repository.answers = [first, whole]
    assert get(repository, tmp_path).read_bytes() == BODY


def test_wrong_bytes_for_ever_are_never_used(repository: Repository, tmp_path: Path) -> None:
    repository.answers = [wrong]
    with pytest.raises(Unavailable, match="checksum is wrong"):
        get(repository, tmp_path, attempts=3)
    assert len(repository.ranges) == 3
    assert not list(tmp_path.glob("*.jar*"))


@pytest.mark.parametrize("damage", [b"", BODY[:-1], b"y" + BODY[1:]], ids=["empty", "truncated", "altered"])
def test_a_damaged_cached_file_is_replaced(repository: Repository, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / JAR.filename).write_bytes(damage)
    repository.answers = [whole]
    assert get(repository, tmp_path).read_bytes() == BODY


def test_a_good_cache_needs_no_network(repository: Repository, tmp_path: Path) -> None:
    repository.answers = [whole]
    get(repository, tmp_path)
    get(repository, tmp_path)
    assert len(repository.ranges) == 1


def test_no_connection_is_one_clear_line(tmp_path: Path) -> None:
    options = FetchOptions("http://127.0.0.1:9", attempts=2, backoff_s=0.01, quiet=True)
    with pytest.raises(Unavailable, match=r"thing-1\.0\.jar could not be downloaded in 2 attempts: no connection"):
        fetch([JAR], tmp_path, options)


def test_the_lock_file_pins_one_kafka_and_no_host() -> None:
    jars = read_lock()
    assert len({jar.filename for jar in jars}) == len(jars)
    assert {jar.coordinate.split(":")[2] for jar in jars if jar.coordinate.startswith("org.apache.kafka:")} == {"4.3.1"}
    assert all(len(jar.sha256) == 64 and jar.size_bytes > 0 for jar in jars)
    assert "://" not in LOCK_FILE.read_text()


def test_a_malformed_lock_is_said(tmp_path: Path) -> None:
    (tmp_path / "jars.lock").write_text("kafka a:b:1 x\n")
    with pytest.raises(StreamsError, match="line 1"):
        read_lock(tmp_path / "jars.lock")
