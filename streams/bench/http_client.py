"""The cheapest HTTP/1.1 client there is: one keep-alive connection on a blocking socket, one request at a time.

Its own cost is part of every latency measured with it, so benches measure that cost too (`client_overhead_ms`) and
report it beside their numbers.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from streams.bench.statistics import median
from streams.model.errors import StreamsError, Timeout, Unavailable
from streams.region.processes import die_with_parent


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: status, header names in lower case, body, and seconds from the first byte sent to the last."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        """The body as JSON; StreamsError when the status is not 2xx."""
        if not 200 <= self.status < 300:
            raise StreamsError(f"the gateway answered {self.status}: {self.body[:200].decode(errors='replace')}")
        return json.loads(self.body)


class Connection:
    """One keep-alive connection to a gateway; not for use by two threads at once."""

    def __init__(self, base_url: str, *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(base_url)
        self._host = f"{parts.hostname}:{parts.port or 80}"
        try:
            self._socket = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=timeout_s)
        except OSError as error:
            raise Unavailable(f"no gateway answers at {base_url}: {error.strerror or error}") from None
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """Send a request and read its whole answer. Timeout, or Unavailable when the connection breaks."""
        lines = [f"{method} {path} HTTP/1.1", f"host: {self._host}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        if body or method in ("PUT", "POST"):
            lines.append(f"content-length: {len(body)}")
        message = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
        start = time.perf_counter()
        try:
            self._socket.sendall(message)
            status, found, rest = self._read()
        except TimeoutError:
            raise Timeout(f"{method} {path} was not answered in time") from None
        except OSError as error:
            raise Unavailable(f"the connection broke: {error.strerror or error}") from None
        return Answer(status, found, rest, time.perf_counter() - start)

    def put(self, key: str, value: object) -> Answer:
        """Put a value; the key needs no quoting."""
        return self.request("PUT", f"/v1/kv/{key}", json.dumps(value).encode(), {"content-type": "application/json"})

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def __enter__(self) -> Connection:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _read(self) -> tuple[int, dict[str, str], bytes]:
        data = self._more()
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._more()
        first, *lines = data[:end].decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = data[end + 4 :]
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return int(first.split()[1]), headers, self._read_chunks(body)
        length = int(headers.get("content-length", "0"))
        while len(body) < length:
            body += self._more()
        return int(first.split()[1]), headers, body

    def _read_chunks(self, data: bytes) -> bytes:
        found = b""
        while True:
            while (end := data.find(b"\r\n")) < 0:
                data += self._more()
            size = int(data[:end].split(b";")[0], 16)
            while len(data) < end + 2 + size + 2:
                data += self._more()
            found += data[end + 2 : end + 2 + size]
            data = data[end + 2 + size + 2 :]
            if size == 0:
                return found

    def _more(self) -> bytes:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionResetError("closed by the gateway")
        return data


_ECHO = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
peer = listener.accept()[0]
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while peer.recv(65536):
    peer.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-type: application/json\\r\\ncontent-length: 2\\r\\n\\r\\n{}")
"""


def client_overhead_ms(requests: int = 2000) -> float:
    """The median milliseconds a request takes to a server that answers a constant: this client and loopback alone."""
    server = subprocess.Popen(
        [sys.executable, "-c", _ECHO], stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent()
    )
    try:
        port = server.stdout.readline().strip() if server.stdout else ""
        with Connection(f"http://127.0.0.1:{port}") as connection:
            return median([connection.request("GET", "/").seconds for _ in range(requests)]) * 1e3
    finally:
        server.kill()
        server.wait()
        if server.stdout:
            server.stdout.close()
