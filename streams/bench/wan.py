"""Regions that are far apart: each region's mirror listener behind a proxy that lets every byte wait.

`python -m streams.bench.wan DIR ONE_WAY_MS REGION,REGION` writes a topology whose regions reach each other through it,
says `ready`, and serves until its standard input ends. A process of its own, so that it takes no turns from a bench.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop

from streams.bench.delay_proxy import pump
from streams.model.errors import StreamsError
from streams.model.topology import Region, Topology
from streams.region.plan import MIRROR_PORT
from streams.region.processes import die_with_parent


@contextmanager
def far_apart(data: Path, regions: Sequence[str], one_way_ms: float) -> Iterator[None]:
    """While the context lasts, a system started in `data` (empty) has these regions, so far apart.

    What a region's gateways and the mirror ask of another region goes through its proxy; clients are near.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "streams.bench.wan", str(data), str(one_way_ms), ",".join(regions)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent(),
    )
    try:
        if process.stdout is None or process.stdout.readline().strip() != "ready":
            raise StreamsError("the proxy between the regions did not start")
        yield
    finally:
        process.kill()
        process.communicate()


class _Proxy:
    def __init__(self, data: Path, region: str, delay_s: float) -> None:
        self._data, self._region, self._delay_s = data, region, delay_s

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the region's mirror listener, wherever it is now."""
        try:
            port = int(Topology.load(self._data).region(self._region).extra[MIRROR_PORT])
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        except (OSError, KeyError, StreamsError):
            writer.close()
            return
        await asyncio.gather(
            pump(reader, far_writer, self._delay_s), pump(far_reader, writer, self._delay_s), return_exceptions=True
        )


async def _main(data: Path, one_way_ms: float, names: Sequence[str]) -> None:
    regions = []
    for name in names:
        proxy = _Proxy(data, name, one_way_ms / 1e3)
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        regions.append(Region(name, "", mirror_bootstrap_servers=f"127.0.0.1:{port}"))
    Topology(tuple(regions)).save(data)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_main(Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3].split(",")))
