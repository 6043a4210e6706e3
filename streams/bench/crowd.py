"""Many HTTP clients in one thread: each keeps one connection, and sends its next request when it has its answer."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from urllib.parse import urlsplit

from streams.model.errors import StreamsError, Timeout

_STALL_S = 30.0
Request = Callable[[int], tuple[str, str, bytes]]
"""Method, path and JSON body of the request of a number."""


@dataclass(frozen=True, slots=True)
class Crowded:
    """What a crowd measured: seconds of each request, and of all together."""

    seconds: list[float]
    wall_s: float

    @property
    def per_s(self) -> float:
        """Requests answered a second."""
        return len(self.seconds) / self.wall_s


class _Client:
    def __init__(self, connection: socket.socket, host: str) -> None:
        self.connection, self._host = connection, host
        self.held, self.sent_s = b"", 0.0

    def send(self, request: tuple[str, str, bytes]) -> None:
        """Send (method, path, body), and note when."""
        method, path, body = request
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        self.sent_s = time.perf_counter()
        self.connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def answered(self) -> bool:
        """Take what has come; whether that is the whole answer. StreamsError when it is not 200."""
        data = self.connection.recv(1 << 16)
        if not data:
            raise StreamsError("the gateway closed a connection")
        self.held += data
        end = self.held.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self.held[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.held) < end + 4 + length:
            return False
        if not head.startswith(b"http/1.1 200"):
            raise StreamsError(f"the gateway answered {self.held[:400].decode(errors='replace')}")
        self.held = b""
        return True


def crowd(gateway: str, clients: int, count: int, request: Request) -> Crowded:
    """Send `count` requests from so many clients; StreamsError when one is not answered 200, Timeout when none is."""
    parts = urlsplit(gateway)
    host, port = parts.hostname or "", parts.port or 80
    numbers: Iterator[int] = iter(range(count))
    seconds: list[float] = []
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        everyone = []
        for _ in range(clients):
            connection = stack.enter_context(socket.create_connection((host, port), timeout=_STALL_S))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            everyone.append(_Client(connection, f"{host}:{port}"))
            selector.register(connection, selectors.EVENT_READ, everyone[-1])
        began_s = time.perf_counter()
        for client in everyone:
            _next(client, numbers, request)
        while len(seconds) < count:
            ready = selector.select(_STALL_S)
            if not ready:
                raise Timeout(f"no request was answered for {_STALL_S:.0f} s")
            for key, _ in ready:
                client = key.data
                if client.answered():
                    seconds.append(time.perf_counter() - client.sent_s)
                    _next(client, numbers, request)
        return Crowded(seconds, time.perf_counter() - began_s)


def _next(client: _Client, numbers: Iterator[int], request: Request) -> None:
    number = next(numbers, None)
    if number is not None:
        client.send(request(number))
