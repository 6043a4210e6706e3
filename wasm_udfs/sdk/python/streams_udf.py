"""Python SDK: UDFs as classes with `fold(events)`, `map(events)`, `filter(events)` or `flat_map(events)`.

    from streams_udf import Fold

    class Udf(Fold):
        def fold(self, events):
            for e in events:  # every put, in the log's order; deletes are done by the SDK
                if e.value["add"] >= 10:
                    e.row = (e.row or 0) + 1  # the row of the event's key; None: there is none

It runs inside the component that `streams udf build` makes. What a UDF does must depend on the events and rows alone:
there is no clock and no I/O (the component stops), and nothing may be kept on `self` from one call to the next.
"""

import json
import random
import struct

NEVER_MS = 2**63 - 1
LWW, COUNTER, MAX, MIN = 1, 2, 3, 4
PUT, DELETE, PURGE = 0, 1, 2
_MAX_CELLS = 16
_ROW = struct.Struct("<BBHIQQQ")
_CELL = struct.Struct("<QQqI")
_SECTIONS = {1: "q", 2: "Q", 3: "q", 4: "Q", 5: "B", 6: "I", 8: "I"}
_UNSET = object()


def _no_randomness(*_, **__):
    raise RuntimeError("a UDF has no randomness; random.Random(seed), with a seed from the event, is none")


for _name in random.__all__:
    if not isinstance(getattr(random, _name), type):
        setattr(random, _name, _no_randomness)

SCHEMAS = {}
"""Names of the built-in schemas by id; set by the app that is built."""


# ---- Avro, as far as the built-in schemas need it


def read_long(data, at):
    """An Avro long at `at`; the value and where it ends."""
    shift = value = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7


def write_long(value):
    """An Avro long."""
    value = (value << 1) ^ (value >> 63)
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_text(data, at):
    size, at = read_long(data, at)
    return data[at : at + size].decode(), at + size


def _write_text(text):
    data = text.encode()
    return write_long(len(data)) + data


def decode(wire):
    """The value of wire-format bytes: of built-in schemas as JSON has it, else the Avro body's bytes."""
    name, body = SCHEMAS.get(int.from_bytes(wire[1:5], "big")), wire[5:]
    if name == "streams.CounterAdd":
        return {"add": read_long(body, 0)[0]}
    if name == "streams.Number":
        return struct.unpack_from("<d", body)[0]
    if name == "streams.Json":
        return json.loads(_read_text(body, 0)[0])
    if name == "streams.Reading":
        metric, at = _read_text(body, 0)
        return {"metric": metric, "value": struct.unpack_from("<d", body, at)[0], "time": read_long(body, at + 8)[0]}
    return body


def encode(name, value):
    """The Avro body of a value of a built-in schema; bytes are taken for a body as they are."""
    if isinstance(value, bytes):
        return value
    if name == "streams.CounterAdd":
        return write_long(value["add"])
    if name == "streams.Number":
        return struct.pack("<d", value)
    if name == "streams.Json":
        return _write_text(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    if name == "streams.Reading":
        return _write_text(value["metric"]) + struct.pack("<d", value["value"]) + write_long(value["time"])
    raise TypeError(f"give the Avro body as bytes: {name or 'the output'} has no built-in schema")


def _json_wire(value):
    ident = next(ident for ident, name in SCHEMAS.items() if name == "streams.Json")
    return b"\0" + ident.to_bytes(4, "big") + encode("streams.Json", value)


# ---- rows (wasm_udfs/ABI.md: Row, Rules of one event)


class _Row:
    __slots__ = ("cells", "deleted", "dirty", "exists", "last")

    def __init__(self):
        self.deleted = self.last = 0
        self.cells = []  # [start, last, expires_ms, payload]
        self.exists = self.dirty = False

    def read(self, data):
        _, _, n, _, _, self.deleted, self.last = _ROW.unpack_from(data)
        at = _ROW.size
        for _ in range(n):
            start, last, expires_ms, size = _CELL.unpack_from(data, at)
            at += _CELL.size
            self.cells.append([start, last, expires_ms, data[at : at + size]])
            at += size
        self.exists = True

    def write(self, merge):
        parts = [_ROW.pack(1, merge, len(self.cells), 0, 0, self.deleted, self.last)]
        for start, last, expires_ms, payload in self.cells:
            parts += (_CELL.pack(start, last, expires_ms, len(payload)), payload)
        return b"".join(parts)

    def drop(self, mark, deleted, expired_ms):
        self.cells = [each for each in self.cells if each[mark] > deleted and each[2] > expired_ms]


class Event:
    """One put. `key` (`score:alice`), `rest` (`alice`), `body` (Avro), `append_ms`, `expires_ms`, `hlc`."""

    __slots__ = (
        "_host", "_new", "_open", "_refused", "_state", "_wire", "append_ms", "expires_ms", "generation", "hlc", "key",
        "op",
    )  # fmt: skip

    def __init__(self, host, state, at, columns, key, wire):
        self._host, self._state, self._wire, self.key = host, state, wire, key
        self.append_ms, self.hlc, self.expires_ms = columns[1][at], columns[2][at], columns[3][at]
        self.generation, self.op = columns[4][at], columns[5][at]
        self._new, self._refused, self._open = _UNSET, None, True

    @property
    def rest(self):
        """The key without its keyspace."""
        return self.key.partition(":")[2]

    @property
    def value(self):
        """The put's value: of built-in schemas as JSON has it, else the Avro body."""
        return decode(self._wire)

    @property
    def body(self):
        """The put's Avro body."""
        return self._wire[5:]

    def reject(self, reason):
        """Refuse the event: it becomes a dead letter and leaves no trace."""
        self._check()
        self._refused = str(reason)

    def _check(self):
        if not self._open:
            raise RuntimeError("an event may be changed only until the next one is taken")

    # ---- folds

    @property
    def row(self):
        """What the key's row holds and the put would go on with: a counter's number, a max or min, a value; or None."""
        cell = self._host._peek(self, self._state)
        return None if cell is None else self._host._shown(cell[3])

    @row.setter
    def row(self, value):
        self._check()
        self._new = value

    # ---- maps

    def emit(self, value, key=None, output=0):
        """A put to an output keyspace; `key`: its key without the keyspace, None: the event's own."""
        self._check()
        name = self._host.writes[output]
        self._state.append((output, 0, (key or "").encode(), encode(name, value)))

    def emit_delete(self, key=None, output=0):
        """A delete in an output keyspace (in `on_delete`)."""
        self._check()
        self._state.append((output, 1, (key or "").encode(), b""))

    def keep(self):
        """Pass the event on to every output, as it is."""
        self._check()
        self._state += [(output, 2, b"", b"") for output in range(len(self._host.writes))]


def _columns(data):
    sections = {}
    for at in range(16, 16 + 16 * int.from_bytes(data[12:16], "little"), 16):
        ident, start, size, _ = struct.unpack_from("<IIII", data, at)
        piece = data[start : start + size]
        code = _SECTIONS.get(ident)
        sections[ident] = memoryview(piece).cast(code).tolist() if code else piece
    return int.from_bytes(data[4:8], "little"), sections


def _slices(data, ends):
    start, found = 0, []
    for end in ends:
        found.append(data[start:end])
        start = end
    return found


def _ends(items):
    total, found = 0, []
    for each in items:
        total += len(each)
        found.append(total)
    return struct.pack(f"<{len(found)}I", *found)


def _u32(*values):
    return struct.pack(f"<{len(values)}I", *values)


# ---- the kinds


class Fold:
    """Write `fold(self, events)`: go through all events, look at `e.row` and set it."""

    marker = "streams_abi_v1"
    merge = COUNTER

    def __init__(self):
        self._rows, self._dirty, self._batch = {}, [], None

    def _mark(self):
        return 1 if self.merge == LWW else 0

    def _clock(self, e, row):
        return max(e.hlc, e.append_ms << 16, row.last + 1, max(row.deleted, e.generation) + 1)

    def _peek(self, e, row):
        deleted = max(row.deleted, e.generation)
        for cell in reversed(row.cells):
            if cell[self._mark()] > deleted:
                return cell if cell[2] > e.append_ms else None
        return None

    def _touch(self, e, row):
        h = self._clock(e, row)
        row.deleted = max(row.deleted, e.generation)
        row.drop(self._mark(), row.deleted, -(2**63))
        cell = row.cells[-1] if row.cells else None
        if cell is None or cell[2] <= e.append_ms:
            if self.merge == LWW:
                row.cells = []
            elif len(row.cells) == _MAX_CELLS:
                del row.cells[0]
            cell = [h, h, e.expires_ms, b""]
            row.cells.append(cell)
        cell[1], cell[2] = h, max(cell[2], e.expires_ms)
        row.last = h
        self._changed(row)
        return cell

    def _changed(self, row, exists=True):
        row.exists, was = exists, row.dirty
        row.dirty = True
        if not was:
            self._dirty.append(row)

    def _shown(self, payload):
        if self.merge == COUNTER:
            added, subtracted = struct.unpack("<qq", payload)
            return added - subtracted
        return struct.unpack("<d", payload)[0] if self.merge in (MAX, MIN) else decode(payload)

    def _payload(self, old, value):
        if self.merge == COUNTER:
            added, subtracted = struct.unpack("<qq", old or bytes(16))
            change = value - (added - subtracted)
            return struct.pack("<qq", added + max(change, 0), subtracted + max(-change, 0))
        if self.merge in (MAX, MIN):
            return struct.pack("<d", value)
        return value if isinstance(value, bytes) else _json_wire(value)

    def _finish(self, e, row):
        if e._refused is None and e._new is not _UNSET:
            cell = self._touch(e, row)
            cell[3] = self._payload(cell[3], e._new)

    def _purge(self, e, row):
        generation, at = read_long(e.body, 0)
        before_ms, at = read_long(e.body, at)
        last, at = read_long(e.body, at)
        remove = e.body[at] == 1
        if not row.exists:
            return
        cells, deleted = len(row.cells), row.deleted
        row.deleted = max(deleted, generation)
        row.drop(self._mark(), generation, before_ms)
        if remove and not row.cells and row.last == last:
            row.deleted = row.last = 0
            self._changed(row, exists=False)
        elif cells != len(row.cells) or deleted != row.deleted:
            self._changed(row)

    def streams_prepare(self, data):
        """Keys whose rows are not known."""
        n, columns = _columns(data)
        keys = _slices(columns[7], columns[6])
        missing = [key for key in dict.fromkeys(keys) if key not in self._rows]
        self._batch = (n, columns, keys, _slices(columns[9], columns[8]))
        return 0, _u32(len(missing)) + _ends(missing) + b"".join(missing)

    def streams_load(self, data):
        """The rows that `streams_prepare` asked for."""
        n = int.from_bytes(data[:4], "little")
        key_ends = memoryview(data[4 : 4 + 4 * n]).cast("I").tolist()
        row_ends = memoryview(data[4 + 4 * n : 4 + 8 * n]).cast("I").tolist()
        present, at = data[4 + 8 * n : 4 + 9 * n], 4 + 9 * n
        keys = _slices(data[at:], key_ends)
        rows = _slices(data[at + (key_ends[-1] if n else 0) :], row_ends)
        for key, row, there in zip(keys, rows, present, strict=True):
            found = self._rows[key] = _Row()
            if there:
                found.read(row)
        return 0, b""

    def _events(self, rejects):
        n, columns, keys, wires = self._batch
        for at in range(n):
            row = self._rows[keys[at]]
            e = Event(self, row, at, columns, keys[at].decode(), wires[at])
            if e.op == PUT:
                yield e
                e._open = False
                if e._refused is not None:
                    rejects.append((at, e._refused.encode()))
                self._finish(e, row)
            elif e.op == DELETE:
                row.deleted = row.last = self._clock(e, row)
                row.cells = []
                self._changed(row)
            else:
                self._purge(e, row)

    def streams_fold(self, data):
        """Folds the batch prepared."""
        rejects = []
        events = self._events(rejects)
        self.fold(events)
        _drained(events)
        self._batch = None
        index, reasons = [at for at, _ in rejects], [reason for _, reason in rejects]
        return 0, _u32(len(index), *index) + _ends(reasons) + b"".join(reasons)

    def streams_take(self, data):
        """The changed rows. Nothing is kept afterwards: the host has them."""
        by_row = {id(row): key for key, row in self._rows.items()}
        changed = [(by_row[id(row)], row) for row in self._dirty]
        keys = [key for key, _ in changed]
        rows = [row.write(self.merge) if row.exists else b"" for _, row in changed]
        present = bytes(row.exists for _, row in changed)
        self._rows, self._dirty = {}, []
        return 0, _u32(len(keys)) + _ends(keys) + _ends(rows) + present + b"".join(keys) + b"".join(rows)


def _drained(events):
    for _ in events:
        raise RuntimeError("go through all events: some were not looked at")


class _Stateless:
    marker = "streams_map_v1"
    writes = ("",)
    passes_deletes = True

    def _run(self, events):
        raise NotImplementedError

    def on_delete(self, event):
        """A delete of an input key: by default the same key is deleted in every output (flat_map: nothing)."""
        if self.passes_deletes:
            for output in range(len(self.writes)):
                event.emit_delete(output=output)

    def _events(self, batch, made, rejects):
        n, columns, keys, wires = batch
        for at in range(n):
            out = []
            e = Event(self, out, at, columns, keys[at].decode(), wires[at])
            if e.op == PUT:
                yield e
            elif e.op == DELETE:
                self.on_delete(e)
            e._open = False
            if e._refused is not None:
                rejects.append((at, e._refused.encode()))
            else:
                made += [(at, *each) for each in out]

    def streams_map(self, data):
        """What a batch becomes."""
        n, columns = _columns(data)
        made, rejects = [], []
        batch = (n, columns, _slices(columns[7], columns[6]), _slices(columns[9], columns[8]))
        events = self._events(batch, made, rejects)
        self._run(events)
        _drained(events)
        reasons, keys, bodies = [r for _, r in rejects], [each[3] for each in made], [each[4] for each in made]
        head = _u32(len(rejects), len(made), *(at for at, _ in rejects)) + _ends(reasons)
        head += b"".join(_u32(*(each[column] for each in made)) for column in range(3))
        return 0, b"".join((head, _ends(keys), _ends(bodies), *reasons, *keys, *bodies))


class Map(_Stateless):
    """Write `map(self, events)`: call `e.emit(value)` once for each event, or `e.reject(why)`."""

    def _run(self, events):
        self.map(events)


class Filter(_Stateless):
    """Write `filter(self, events)`: call `e.keep()` for the events to pass on."""

    def _run(self, events):
        self.filter(events)


class FlatMap(_Stateless):
    """Write `flat_map(self, events)`: call `e.emit(value, key=…)` as often as you like."""

    passes_deletes = False

    def _run(self, events):
        self.flat_map(events)


KINDS = {"fold": Fold, "map": Map, "filter": Filter, "flat_map": FlatMap}


class Dispatcher:
    """The component's one export: calls of the ABI by name."""

    def __init__(self, udf):
        self._udf = udf

    def call(self, name, text):
        """Bytes in, status and bytes out; an exception of the UDF is a negative status and its text."""
        if name.startswith("streams_") and name[-3:-1] == "_v":
            return _text(int(name == self._udf.marker), b"")
        try:
            status, data = getattr(self._udf, name)(text.encode("latin-1"))
        except Exception as error:
            status, data = -9, f"{type(error).__name__}: {error}".encode()[:300]
        return _text(status, data)


def _text(status, data):
    return (status.to_bytes(4, "little", signed=True) + data).decode("latin-1")


def udf_of(module, kind):
    """The UDF's class in its module, made."""
    found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, KINDS[kind])]
    own = [each for each in found if each.__module__ == module.__name__]
    if len(own) != 1:
        raise TypeError(f"write one class of {KINDS[kind].__name__} (kind = {kind!r}), not {len(own)}")
    return own[0]()
