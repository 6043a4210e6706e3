"""A TCP proxy whose link can be slowed and cut, for tests of distance and partitions."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

_CHUNK = 1 << 16


class TcpProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target_port`, each byte `delay_s` late; `cut()` drops and refuses.

    Set `target_port` later if it is not known at first (connections before that are closed at once). It counts what it
    did: connections `dropped` by cuts and `refused` during them, and pieces that came `delayed`.
    """

    def __init__(self, target_port: int = 0, *, port: int = 0, delay_s: float = 0.0) -> None:
        self.target_port = target_port
        self.delay_s = delay_s
        self.port = port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self.dropped = self.refused = self.delayed = 0

    async def start(self) -> TcpProxy:
        """Listen; with port 0 a free one is chosen and kept in `port`."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    @property
    def is_cut(self) -> bool:
        """Whether the link is down."""
        return self._cut

    def cut(self) -> None:
        """Drop every connection now and close new ones until `heal()`."""
        self._cut = True
        self.dropped += len(self._writers)
        for writer in list(self._writers):
            writer.transport.abort()

    def heal(self) -> None:
        """Let connections through again."""
        self._cut = False

    async def stop(self) -> None:
        """Close the listener and every connection."""
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> TcpProxy:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._cut or not self.target_port:
                self.refused += self._cut
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(far_writer)
            try:
                await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))
            finally:
                self._writers.discard(far_writer)
                far_writer.transport.abort()
        except OSError:
            pass  # the far side refused or a side went away: the other is closed below
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy until the end; a queue keeps the delay from lowering the throughput."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def deliver() -> None:
            while True:
                due, data = await queue.get()
                if due > loop.time():
                    self.delayed += 1
                    await asyncio.sleep(due - loop.time())
                if not data:
                    return
                writer.write(data)
                await writer.drain()

        delivery = asyncio.create_task(deliver())
        try:
            data = b"-"
            while data:
                data = await reader.read(_CHUNK)
                await queue.put((loop.time() + self.delay_s, data))
            await delivery
        finally:
            delivery.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await delivery
            writer.transport.abort()
