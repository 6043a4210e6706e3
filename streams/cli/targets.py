"""Where a load goes: straight to Kafka, where an interrupted one resumes, or through a gateway."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from streams.cli.resume import LoadState, header_of, load_id
from streams.client.direct import KafkaSender, Prepared, sender_for
from streams.model.topology import Topology
from streams.region.paths import data_dir
from streams.region.status import supervisor_of
from streams.tabular.files import lines_of
from streams.tabular.judge import Rejection

if TYPE_CHECKING:
    from streams.cli.load import LoadOptions
    from streams.client import AsyncClient
    from streams.tabular.rows import Rows


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of a chunk. `skipped`: puts that were in the log from before; `rejections`: the first ones."""

    accepted: int
    skipped: int
    rejections: list[Rejection]
    rejected_count: int


class Target(Protocol):
    """Takes chunks in order."""

    def prepare(self, rows: Rows, chunk: int) -> Any:
        """For a thread: what `send` takes."""
        ...

    async def send(self, ready: Any) -> Sent:
        """Returns when it is durable."""
        ...

    def done(self) -> None:
        """All of it was sent."""
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...


class KafkaTarget:
    """Frames to the events topic, each named by load and chunk; those that are there are not sent again."""

    def __init__(self, sender: KafkaSender, state: LoadState | None, ttl_ms: int | None) -> None:
        self._sender, self._state, self._ttl_ms = sender, state, ttl_ms

    def prepare(self, rows: Rows, chunk: int) -> tuple[Prepared, int]:
        """Judge and encode."""
        now_ms = self._state.started_ms if self._state is not None else None
        return self._sender.prepare(rows, self._ttl_ms, now_ms), chunk

    async def send(self, ready: tuple[Prepared, int]) -> Sent:
        """Append the frames that are not there."""
        prepared, chunk = ready
        frames, loads, skipped = [], [], 0
        seen: dict[int, int] = {}
        for frame in prepared.frames:
            place = (chunk, seen.get(frame.partition, 0))
            seen[frame.partition] = place[1] + 1
            if self._state is not None and self._state.holds(frame.partition, place):
                skipped += len(frame.rows)
            else:
                frames.append(frame)
                loads.append(header_of(self._state.ident, place) if self._state is not None else "")
        await self._sender.send(frames, loads if self._state is not None else None)
        refused = prepared.rejections
        return Sent(prepared.accepted - skipped, skipped, refused, len(refused))

    def done(self) -> None:
        """The load is complete."""
        if self._state is not None:
            self._state.done()

    async def close(self) -> None:
        """Disconnect."""
        await self._sender.stop()


class GatewayTarget:
    """NDJSON to a gateway."""

    def __init__(self, edge: AsyncClient, ttl_ms: int | None) -> None:
        self._edge, self._ttl_ms = edge, ttl_ms

    def prepare(self, rows: Rows, chunk: int) -> tuple[bytes, list[int]]:
        """The lines, and each one's place in the file."""
        return lines_of(rows, self._ttl_ms), rows.numbers.tolist()

    async def send(self, ready: tuple[bytes, list[int]]) -> Sent:
        """One batch."""
        body, numbers = ready
        receipt = await self._edge.put_raw(body, "application/x-ndjson")
        refused = [Rejection(numbers[each.line - 1], each.reason) for each in receipt.rejected]
        return Sent(receipt.accepted, 0, refused, receipt.rejected_count)

    def done(self) -> None:
        """Nothing to remember."""

    async def close(self) -> None:
        """The session is the caller's."""


async def open_target(
    edge: AsyncClient,
    keyspace: str,
    file: Path,
    options: LoadOptions,
    bootstrap_servers: str | None,
    region: str | None,
    url: str | None,
    data: Path | None,
) -> Target:
    """Straight to Kafka when its address is given, or the system runs on this machine; else through the gateway."""
    if bootstrap_servers is None and url is None:
        found = data_dir(data)
        if supervisor_of(found) is not None:
            topology = Topology.load(found)
            bootstrap_servers = (topology.region(region) if region else topology.home).bootstrap_servers
    if bootstrap_servers is None:
        return GatewayTarget(edge, options.ttl_ms)
    sender = await sender_for(edge.get_json, bootstrap_servers, keyspace)
    state = None
    if str(file) != "-":
        what = [
            options.kind,
            options.key,
            options.renames,
            options.ttl_ms,
            keyspace,
            sender.region,
            str(data_dir(data)),
        ]
        state = LoadState(load_id(file, {"options": what}), bootstrap_servers, sender.keyspace)
        await state.begin()
    await sender.start()
    return KafkaTarget(sender, state, options.ttl_ms)
