"""A map, filter or flat_map as the task's FoldPort: its outputs are puts of other keyspaces, and it has no rows.

What an output is depends on its event alone, so a unit that is made again, cut elsewhere or by another process, holds
equal records: the clock is the event's, the time to live the event's own, `source` says which event it was. Every
output is judged as the output keyspace's decoder will judge it; an event with one that is none is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from streams.definitions.chains import PutRule
from streams.kafka.batches import ProducerState, encode_batches
from streams.model.clock import NEVER_MS
from streams.model.errors import StreamsError
from streams.model.keyspace import Keyspace
from streams.processing.black_box import UdfInfo
from streams.processing.containment import Containment
from streams.processing.outputs import SOURCE_HEADER
from streams.processing.ports import Decoded, LoadRows, Output, Rejected, Rows, StoppedAt
from streams.processing.topics import RECORD_BYTES_MAX
from streams.processing.udf_ports import DecoderPool, refused
from streams.serde import delete_value
from streams.wasm.batch import Batch
from streams.wasm.decoder import DecoderConfig
from streams.wasm.fold_host import Reject, RejectKind
from streams.wasm.map_host import DELETE, PASS, Emitted, MapHost

UNIT_BYTES_MAX = 512 << 20
"""What may wait for one commit. A flat_map that makes more of one fetch is an error that stays visible."""
_NOBODY = ProducerState(-1, -1, False)
ConfigOf = Callable[[Keyspace], DecoderConfig]


class Puts:
    """Turns what a module emitted into records for the output keyspaces (used by tests of UDFs too).

    `config_of`: how an output keyspace's records are decoded, as of now. `origin`: the region.
    """

    def __init__(self, rules: Sequence[PutRule], config_of: ConfigOf, decoders: DecoderPool, origin: str) -> None:
        self._rules, self._config_of, self._decoders = tuple(rules), config_of, decoders
        self._origin = origin.encode()
        self._prefixes = [b"\0" + rule.schema_id.to_bytes(4, "big") for rule in rules]
        self._deleted = delete_value()

    def records(self, batch: Batch, emitted: Sequence[Emitted], source: str) -> tuple[list[Output], list[Reject]]:
        """The records, in the order of their events, and events that made something which is no put there.

        `source`: the input, `topic/partition`.
        """
        if not emitted:
            return [], []
        made = self._made(batch, emitted)
        bad = self._judged(made, emitted)
        events = {each.event for each in emitted} - bad.keys()
        headers = {event: self._headers(batch, event, source) for event in events}
        good = [
            Output(self._rules[each.output].keyspace.events_topic, None, key, value, headers[each.event])
            for each, (key, value) in zip(emitted, made, strict=True)
            if each.event in headers
        ]
        return good, [Reject(event, reason, RejectKind.UDF) for event, reason in sorted(bad.items())]

    def _made(self, batch: Batch, emitted: Sequence[Emitted]) -> list[tuple[bytes, bytes]]:
        found, at, event = [], -1, None
        for each in emitted:
            if event is None or each.event != at:
                at, event = each.event, batch.event(each.event)
            rest = each.rest or event.key.partition(b":")[2]
            key = self._rules[each.output].keyspace.name.encode() + b":" + rest
            if each.op == DELETE:
                value = self._deleted
            elif each.op == PASS:
                value = event.value
            else:
                value = self._prefixes[each.output] + each.body
            found.append((key, value))
        return found

    def _judged(self, made: Sequence[tuple[bytes, bytes]], emitted: Sequence[Emitted]) -> dict[int, str]:
        """Events with an output that its keyspace would not take, and why."""
        bad: dict[int, str] = {}
        decoder = self._decoders.take()
        try:
            for index, rule in enumerate(self._rules):
                chosen = [i for i, each in enumerate(emitted) if each.output == index]
                records = [(*made[i], ()) for i in chosen]
                config, done = self._config_of(rule.keyspace), 0
                for encoded in encode_batches(records, _NOBODY, -1, RECORD_BYTES_MAX - 1024):
                    found = decoder.decode([encoded.data], 0, encoded.count, config)
                    for reject in found.rejects:
                        event = emitted[chosen[done + reject.offset]].event
                        bad.setdefault(event, f"output to {rule.keyspace.name}: {reject.text}")
                    done += encoded.count
        finally:
            self._decoders.give_back(decoder)
        return bad

    def _headers(self, batch: Batch, event: int, source: str) -> list[tuple[str, bytes]]:
        expires_ms, append_ms = int(batch.column("expires_ms")[event]), int(batch.column("append_ms")[event])
        headers = [("hlc", b"%d" % int(batch.column("hlc")[event])), ("origin", self._origin)]
        if expires_ms != NEVER_MS:
            headers.append(("ttl_ms", b"%d" % (expires_ms - append_ms)))
        if batch.has_offsets:
            headers.append((SOURCE_HEADER, f"{source}:{int(batch.column('offset')[event]) + 1}".encode()))
        return headers


class MapFold:
    """A MapHost and its Puts over one partition (a FoldPort). `source`: the input, `topic/partition`; `info` goes into
    the black boxes of the events that stop it."""

    def __init__(
        self,
        host: MapHost,
        puts: Puts,
        source: str,
        containment: Containment | None = None,
        info: UdfInfo | None = None,
    ) -> None:
        self._host, self._puts, self._source, self._containment = host, puts, source, containment
        self._info = info
        self._waiting: list[Output] = []
        self._bytes = 0
        self._stopped: StoppedAt | None = None

    def fold(self, decoded: Decoded, load_rows: LoadRows) -> Sequence[Rejected]:
        """Map a batch; the events that the UDF refused, that stopped it, or of which it made what is no put."""
        batch = decoded.batch
        assert isinstance(batch, Batch)
        contained = self._containment
        emitted, rejects = self._host.map(batch, None if contained is None else contained.searching())
        self._stopped = self._stopped_at(batch)
        traps = sum(each.kind is RejectKind.TRAP for each in rejects)
        if traps and self._containment is not None:
            self._containment.trapped(traps)
            self._containment.judge_late()
        records, bad = self._puts.records(batch, emitted, self._source)
        self._waiting += records
        self._bytes += sum(len(each.key or b"") + len(each.value or b"") for each in records)
        if self._bytes > UNIT_BYTES_MAX:
            raise StreamsError(
                f"over {UNIT_BYTES_MAX} bytes of outputs wait for one commit", fix="make fewer puts of each event"
            )
        found = sorted([*rejects, *bad], key=lambda each: each.index)
        return [refused(batch.event(each.index), each, self._info) for each in found]

    @property
    def stopped(self) -> StoppedAt | None:
        """Where the last fold did not go on: too many events stop the UDF, or finding them takes too long."""
        return self._stopped

    def _stopped_at(self, batch: Batch) -> StoppedAt | None:
        at = self._host.stopped
        if at is None:
            return None
        return StoppedAt(int(batch.column("offset")[at]), at, int(batch.column("append_ms")[at - 1]))

    @property
    def changed_rows(self) -> int:
        """A map has no rows."""
        return 0

    @property
    def searching(self) -> bool:
        """Whether it is looking for what stops the module."""
        return self._host.isolating

    def cancel(self) -> None:
        """Make such a search end soon."""
        self._host.cancel()

    def take(self) -> tuple[Rows, Sequence[Rejected]]:
        """No rows, nothing late."""
        return (), ()

    def take_outputs(self) -> Sequence[Output]:
        """The records made since the last call, for the same transaction as their marker."""
        made, self._waiting, self._bytes = self._waiting, [], 0
        return made

    def committed(self) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Forget everything and free the instance."""
        self._waiting, self._bytes = [], 0
        self._host.close()
