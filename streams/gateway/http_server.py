"""granian, embedded: HTTP on Rust threads, handlers on the one event loop that tables and producer live on."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.server.embed import Server

from streams.model.errors import Conflict

STOP_S = 3.0
BACKPRESSURE = 1024


class HttpServer:
    """Serves one ASGI application on loopback (or `host`) until stopped."""

    def __init__(self, app: Any, port: int, host: str = "127.0.0.1") -> None:
        self._port, self._host = port, host
        self._server = Server(
            app,
            address=host,
            port=port,
            interface=Interfaces.ASGINL,
            http=HTTPModes.http1,
            backlog=1024,
            backpressure=BACKPRESSURE,
            http1_settings=HTTP1Settings(max_buffer_size=1 << 20, header_read_timeout=30_000),
            log_enabled=False,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    async def start(self) -> None:
        """Listen. Conflict when the port is taken; returns when connections are accepted."""
        _check_free(self._host, self._port)
        self._task = asyncio.create_task(self._server.serve(), name="http")
        while not self._task.done():
            try:
                _, writer = await asyncio.open_connection(self._host, self._port)
            except OSError:
                await asyncio.sleep(0.01)
                continue
            writer.close()
            return
        await self._task

    async def stop(self) -> None:
        """Stop listening and let requests in progress end, for at most `STOP_S`.

        Event streams must have been told to end before: an open one would hold the server.
        """
        task, self._task = self._task, None
        if task is None:
            return
        self._server.stop()
        _, late = await asyncio.wait({task}, timeout=STOP_S)
        if late:
            logging.getLogger(__name__).warning("connections are still open after %s s; leaving them", STOP_S)
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)


def _check_free(host: str, port: int) -> None:
    # granian sets SO_REUSEPORT, so a second server would silently share the port with the first.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"port {port} cannot be used: {error}", field="port", fix="free it, or choose another"
            ) from None
