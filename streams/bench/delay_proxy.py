"""A TCP link with a given round trip, in a thread of its own: each byte arrives half of it later, whichever way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

_CHUNK = 1 << 16


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Copy until the end, each byte `delay_s` later. The queue keeps the delay from lowering the throughput."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

    async def deliver() -> None:
        while True:
            due_s, data = await queue.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            if not data:
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    try:
        data = b"-"
        while data:
            data = await reader.read(_CHUNK)
            await queue.put((loop.time() + delay_s, data))
        await delivery
    finally:
        delivery.cancel()
        writer.transport.abort()


class _Link:
    def __init__(self, host: str, port: int, delay_s: float) -> None:
        self._host, self._target, self._delay_s = host, port, delay_s
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self.port = 0
        self.thread = threading.Thread(target=self._run, name="delayed link", daemon=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(
            OSError, asyncio.CancelledError
        ):  # cancelled: the link ends, and there is no one to tell
            far_reader, far_writer = await asyncio.open_connection(self._host, self._target)
            await asyncio.gather(
                pump(reader, far_writer, self._delay_s),
                pump(far_reader, writer, self._delay_s),
                return_exceptions=True,
            )
        writer.transport.abort()

    def start(self) -> None:
        """Listen, in a thread of its own; returns once `port` is known."""
        self.thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Cut every connection and end the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self.thread.join()


@contextmanager
def delayed(url: str, round_trip_s: float) -> Iterator[str]:
    """The same gateway behind a link with this round trip; its URL while the context lasts."""
    parts = urlsplit(url)
    link = _Link(parts.hostname or "", parts.port or 80, round_trip_s / 2)
    link.start()
    try:
        yield f"http://127.0.0.1:{link.port}"
    finally:
        link.stop()
