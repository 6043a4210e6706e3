"""Health, readiness, metrics, documentation and the dashboard."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.model.errors import StreamsError, Unavailable

HTML = b"text/html; charset=utf-8"
_LOGS_WAIT_S = 2.0
PROMETHEUS = b"text/plain; version=0.0.4; charset=utf-8"


class SystemRoutes:
    """Handlers about the gateway itself. `document` makes the OpenAPI document."""

    def __init__(self, gateway: Gateway, document: Callable[[], dict[str, Any]]) -> None:
        self._gateway, self._document = gateway, document
        self._openapi: dict[str, Any] | None = None

    def operations(self) -> list[Operation]:
        """The routes; all open."""

        def page(path: str, handler: Any, summary: str, kind: str = "text/html") -> Operation:
            return Operation("GET", path, handler, summary, "open", answer_type=kind, tag="system")

        return [
            page("/healthz", self.health, "The process answers", "application/json"),
            page("/readyz", self.readiness, "The region serves: log, tables and worker are there", "application/json"),
            page("/metrics", self.metrics, "For Prometheus", "text/plain"),
            page("/openapi.json", self.openapi, "This document", "application/json"),
            page("/docs", self.docs, "This document, for reading"),
            page("/", self.dashboard, "Dashboard"),
        ]

    async def health(self, call: Call) -> Reply:
        """Alive."""
        return reply({"status": "ok", "region": self._gateway.region.name})

    async def readiness(self, call: Call) -> Reply:
        """Ready, or why not (503); also how old the copies of other regions' tables are, which is no reason."""
        reason = "the gateway is stopping" if self._gateway.closing.is_set() else await self._gateway.unready()
        if reason is not None:
            raise Unavailable(reason, fix="wait; see `streams status` and `streams logs`")
        gateway = self._gateway
        copies = {name: {"age_ms": age_ms} for name, age_ms in gateway.copied_ms().items()}
        return reply(
            {"status": "ready", "region": gateway.region.name, "load": gateway.probes.load(), "mirrored": copies}
        )

    async def metrics(self, call: Call) -> Reply:
        """The exposition format."""
        for name in self._gateway.tables.tables | self._gateway.tables.served:
            staleness = self._gateway.tables.staleness_ms(name)
            self._gateway.metrics.staleness_ms.labels(name).set(staleness)
        for origin, age_ms in self._gateway.copied_ms().items():
            self._gateway.metrics.copied_ms.labels(origin).set(math.nan if age_ms is None else age_ms)
        self._measure_tables()
        self._measure_udfs()
        await self._measure_logs()
        return Reply(self._gateway.metrics.text(), content_type=PROMETHEUS)

    def _measure_tables(self) -> None:
        metrics = self._gateway.metrics
        metrics.purges.set(self._gateway.purges())
        for name, table in self._gateway.tables.tables.items():
            sizes: dict[str, int] = {}
            for (origin, _), partition in table.replicas.items():
                sizes[origin] = sizes.get(origin, 0) + partition.size_bytes()
            for origin, size in sizes.items():
                metrics.table_bytes.labels(name, origin).set(size)

    def _measure_udfs(self) -> None:
        service, metrics, here = self._gateway.udfs, self._gateway.metrics, self._gateway.region.name
        if service is None:
            return
        for each in (*metrics.udfs.values(), metrics.udf_traps):
            each.clear()
        for table, meter, state in service.metered(here):
            metrics.udf(table, meter, paused=state == "paused")

    async def _measure_logs(self) -> None:
        """Sizes of logs; those of the last scrape stay when Kafka does not answer in time."""
        metrics, here = self._gateway.metrics, self._gateway.region.name
        try:
            async with asyncio.timeout(_LOGS_WAIT_S):
                found = await self._gateway.log_bytes()
        except (StreamsError, TimeoutError):
            return
        metrics.log_bytes.clear()
        for topic, size in found.items():
            metrics.log_bytes.labels(topic).set(size)
        metrics.events_bytes.set(sum(size for topic, size in found.items() if topic.startswith("events.")))
        for origin in self._gateway.topology.names:
            if origin != here:
                mirrored = sum(size for topic, size in found.items() if topic.startswith(f"{origin}."))
                metrics.mirrored_bytes.labels(origin).set(mirrored)

    async def openapi(self, call: Call) -> Reply:
        """OpenAPI 3.1."""
        if self._openapi is None:
            self._openapi = self._document()
        return reply(self._openapi)

    async def docs(self, call: Call) -> Reply:
        """A page that shows /openapi.json; loads nothing from elsewhere."""
        return Reply(_page("docs.html"), content_type=HTML)

    async def dashboard(self, call: Call) -> Reply:
        """A page that shows the region."""
        return Reply(_page("dashboard.html"), content_type=HTML)


def _page(name: str) -> bytes:
    return (resources.files("streams.gateway") / "pages" / name).read_bytes()
