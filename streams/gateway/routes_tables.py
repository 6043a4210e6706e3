"""`/v1/tables`: lists, scans, points, ordered reads, digests."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from streams.edge.edge_table import EdgeTable, Ranked
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Handler, Operation
from streams.gateway.http import Call, Headers, Reply, reply
from streams.gateway.params import (
    AROUND_N,
    BY,
    CAUSAL_TOKEN,
    CURSOR,
    KEY_PATH,
    KEY_QUERY,
    LIMIT,
    MAX_STALENESS,
    PREFIX,
    TABLE,
    TOP_N,
    AnyParam,
    IntParam,
)
from streams.gateway.routes_kv import point_read
from streams.model.errors import BadInput, NotFound
from streams.model.keys import validate_key

AS_OF = IntParam("as_of", "Digest of the rows alive at this time, epoch milliseconds; default now", 0, 2**62)
_UNKNOWN = {404: "No such table or key", 504: "Not caught up in time"}
_WAITS = (CAUSAL_TOKEN, MAX_STALENESS)


class TableRoutes:
    """Handlers of tables."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes; those with an action after the table's name come before the plain ones."""
        ordered = "/v1/tables/{table}:"
        by = (BY, *_WAITS)
        return [
            Operation("GET", "/v1/tables", self.list_tables, "All tables", params=(CAUSAL_TOKEN,)),
            self._read(ordered + "top", self.top_rows, "The highest rows, ties by key", (TABLE, TOP_N, *by)),
            self._read(ordered + "rank", self.rank_of_key, "Where a key stands", (TABLE, KEY_QUERY, *by)),
            self._read(
                ordered + "around", self.rows_around_key, "A key's neighbours", (TABLE, KEY_QUERY, AROUND_N, *by)
            ),
            self._read(
                ordered + "digest",
                self.digest_of_table,
                "A hash of all rows, equal if they are",
                (TABLE, AS_OF, *_WAITS),
            ),
            self._read(
                "/v1/tables/{table}", self.scan_table, "Rows in key order", (TABLE, PREFIX, LIMIT, CURSOR, *_WAITS)
            ),
            self._read("/v1/tables/{table}/{key:any}", self.table_row, "One row", (TABLE, KEY_PATH, *_WAITS)),
        ]

    @staticmethod
    def _read(path: str, handler: Handler, summary: str, params: Sequence[AnyParam]) -> Operation:
        return Operation("GET", path, handler, summary, "read", params, answers=_UNKNOWN)

    async def list_tables(self, call: Call) -> Reply:
        """Names and settings; a presented token is waited for, over all tables."""
        await self._gateway.await_token(self._gateway.token_of(call))
        rows = []
        for name, table in sorted(self._gateway.tables.served.items()):
            spec = table.spec
            if not all(call.principal.may(keyspace, "read") for keyspace in spec.keyspaces):
                continue
            if self._gateway.udfs is not None and self._gateway.udfs.is_map(name):
                continue
            rows.append(
                {
                    "name": name,
                    "keyspace": spec.keyspace,
                    "merge": spec.merge.label,
                    "partitions": spec.partitions,
                    "staleness_ms": self._gateway.tables.staleness_ms(name),
                }
            )
        return reply({"tables": rows})

    async def scan_table(self, call: Call) -> Reply:
        """A page of rows."""
        gateway, name = self._gateway, call.part("table")
        await gateway.learn(call, name)
        table = gateway.table(call, name)
        limit = LIMIT.read(call) or 100
        prefix = (PREFIX.text(call) or "").encode()
        after = _decode_cursor(CURSOR.text(call))
        _, headers = await gateway.settle(call, name)
        page = table.scan(prefix, limit, after)
        body = {
            "rows": [gateway.row_of(key, merged) for key, merged in page.rows],
            "cursor": None if page.cursor is None else _encode_cursor(page.cursor),
        }
        return reply(body, headers=headers)

    async def table_row(self, call: Call) -> Reply:
        """A point read by the whole key."""
        return await point_read(self._gateway, call, call.part("table"), validate_key(call.tail(4)))

    async def top_rows(self, call: Call) -> Reply:
        """The first `n` of the order."""
        table, headers, by = await self._ordered(call)
        return self._ranked(await table.top(TOP_N.read(call) or 100, by), by, headers)

    async def rank_of_key(self, call: Call) -> Reply:
        """One row with its rank, also spelled out at the top."""
        key = validate_key(KEY_QUERY.required_text(call))
        table, headers, by = await self._ordered(call)
        found = await table.rank(key, by)
        if found is None:
            raise _unranked(key, by)
        (row,) = self._rows([found], by)
        return reply({**row, "rows": [row]}, headers=headers)

    async def rows_around_key(self, call: Call) -> Reply:
        """A row and `n` on each side."""
        key = validate_key(KEY_QUERY.required_text(call))
        table, headers, by = await self._ordered(call)
        found = await table.around(key, AROUND_N.read(call) or 5, by)
        if not found:
            raise _unranked(key, by)
        return self._ranked(found, by, headers)

    async def digest_of_table(self, call: Call) -> Reply:
        """The digest, and the markers it stands for."""
        name = call.part("table")
        await self._gateway.learn(call, name)
        table = self._gateway.table(call, name)
        as_of_ms = AS_OF.read(call)
        _, headers = await self._gateway.settle(call, name)
        digest = await table.digest(as_of_ms)
        applied = {replica: {"seq": seq, "time_ms": time_ms} for replica, (seq, time_ms) in digest.applied.items()}
        body: dict[str, object] = {
            "digest": digest.hex,
            "rows": digest.rows,
            "as_of": digest.as_of_ms,
            "applied": applied,
        }
        if table.spec.home and self._gateway.strong is not None:
            body |= self._gateway.strong.describe()
        return reply(body, headers=headers)

    async def _ordered(self, call: Call) -> tuple[EdgeTable, Headers, str | None]:
        name = call.part("table")
        await self._gateway.learn(call, name)
        table = self._gateway.table(call, name)
        TOP_N.read(call)
        by = BY.text(call)
        _, headers = await self._gateway.settle(call, name)
        return table, headers, by

    def _ranked(self, found: Sequence[Ranked], by: str | None, headers: Headers) -> Reply:
        return reply({"rows": self._rows(found, by)}, headers=headers)

    def _rows(self, found: Sequence[Ranked], by: str | None) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = []
        for row in found:
            value: object = row.number
            if by is not None and row.merged is not None:
                value = self._gateway.value_of(row.merged)
            rows.append({"rank": row.rank, "key": row.key.decode(), "value": value})
        return rows


def _unranked(key: bytes, by: str | None) -> NotFound:
    what = "number" if by is None else f"number in {by[:80]!r}"
    return NotFound(f"{key.decode()[:200]} has no {what} in this table", field="key", fix="put one first")


def _encode_cursor(key: bytes) -> str:
    return base64.urlsafe_b64encode(key).decode().rstrip("=")


def _decode_cursor(text: str | None) -> bytes | None:
    if not text:
        return None
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise BadInput(
            "the cursor cannot be read", field="cursor", fix="send back the `cursor` of the previous answer"
        ) from None
