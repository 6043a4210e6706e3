"""As many requests as a gateway answers: connections that each send the next when the last is answered; one thread."""

from __future__ import annotations

import re
import selectors
import socket
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from streams.model.errors import StreamsError, Timeout

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STALL_S = 30.0


@dataclass(slots=True)
class _Wire:
    socket: socket.socket
    began_s: float = 0.0
    data: bytearray = field(default_factory=bytearray)

    def whole(self) -> bool:
        """Whether the answer is complete; StreamsError when it is not 200."""
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return False
        if not self.data.startswith(b"HTTP/1.1 200"):
            raise StreamsError(f"the gateway answered {bytes(self.data[:300])!r}")
        length = _LENGTH.search(self.data, 0, end + 2)
        return length is not None and len(self.data) >= end + 4 + int(length[1])


def saturate(url: str, path: str, body: bytes, *, connections: int, seconds: float) -> tuple[float, list[float]]:
    """Requests (POST) a second over so many connections, and the seconds that each took. StreamsError, Timeout."""
    parts = urlsplit(url)
    host = (parts.hostname or "", parts.port or 80)
    head = f"POST {path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    samples: list[float] = []
    with selectors.DefaultSelector() as ready:
        wires = [_Wire(socket.create_connection(host, timeout=10)) for _ in range(connections)]
        try:
            for wire in wires:
                wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ready.register(wire.socket, selectors.EVENT_READ, wire)
                wire.began_s = time.perf_counter()
                wire.socket.sendall(message)
            began_s = time.perf_counter()
            while (now_s := time.perf_counter()) - began_s < seconds:
                events = ready.select(_STALL_S)
                if not events:
                    raise Timeout(f"{url} has not answered for {_STALL_S:.0f} s")
                for key, _ in events:
                    wire = key.data
                    wire.data += wire.socket.recv(1 << 16) or _gone(url)
                    if not wire.whole():
                        continue
                    now_s = time.perf_counter()
                    samples.append(now_s - wire.began_s)
                    wire.data.clear()
                    wire.began_s = now_s
                    wire.socket.sendall(message)
            return len(samples) / (time.perf_counter() - began_s), samples
        finally:
            for wire in wires:
                wire.socket.close()


def _gone(url: str) -> bytes:
    raise StreamsError(f"{url} has closed a connection")
