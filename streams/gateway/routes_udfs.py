"""`/v1/udfs`: deploy a UDF in all regions, see where it runs, remove it."""

from __future__ import annotations

from streams.gateway.auth import ANYONE, authorize, authorize_deploy
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.routes_udf_versions import (
    FORM,
    FROM,
    IN_PLACE,
    KEEP,
    NAME,
    WAIT,
    order_of,
    read_form,
    service_of,
)
from streams.gateway.udf_words import asking
from streams.gateway.udfs import UdfService, touched
from streams.model.clock import wall_ms


class UdfRoutes:
    """Handlers of UDFs."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def operations(self) -> list[Operation]:
        """The routes."""
        one = "/v1/udfs/{name}"
        return [
            Operation("GET", "/v1/udfs", self.list_udfs, "Deployed UDFs, and their state in each region", tag="udfs"),
            Operation(
                "POST",
                "/v1/udfs",
                self.deploy_udf,
                "Deploy a UDF of any kind in all regions; a fold's next version beside it",
                "deploy",
                (WAIT, FROM, IN_PLACE, KEEP),
                {"multipart/form-data": FORM},
                {400: "The manifest or the module is refused", 409: "It does not fit what is deployed"},
                tag="udfs",
            ),
            Operation(
                "POST",
                one + ":resume",
                self.resume_udf,
                "Go on, in all regions, with a UDF that is paused",
                "deploy",
                (NAME, WAIT),
                answers={404: "Unknown"},
                tag="udfs",
            ),
            Operation("GET", one, self.get_udf, "One UDF", "read", (NAME,), answers={404: "Unknown"}, tag="udfs"),
            Operation(
                "DELETE",
                one,
                self.remove_udf,
                "Stop a UDF in all regions and retire its table",
                "deploy",
                (NAME,),
                answers={404: "Unknown"},
                tag="udfs",
            ),
        ]

    @property
    def _service(self) -> UdfService:
        return service_of(self._gateway)

    async def list_udfs(self, call: Call) -> Reply:
        """Those whose inputs the caller may read, by name."""
        service, who = self._service, call.principal
        found = [
            service.described(each)
            for _, each in sorted(service.udfs.live.items())
            if who is ANYONE or all(who.may(keyspace, "read") for keyspace in touched(each.manifest))
        ]
        may = self._gateway.definitions.keyspaces
        builtin = [
            each
            for each in service.builtin()
            if who is ANYONE or (each["table"] in may and who.may(each["table"], "read"))
        ]
        return reply({"udfs": found, "builtin": builtin})

    async def get_udf(self, call: Call) -> Reply:
        """One of them."""
        found = self._service.udfs.get(call.part("name"))
        for keyspace in touched(found.manifest):
            authorize(call.principal, keyspace, "read")
        return reply(self._service.described(found))

    async def deploy_udf(self, call: Call) -> Reply:
        """Judge it, write it at home, and wait for the regions."""
        service = self._service
        wait_s = WAIT.read(call)
        manifest, text, module = await read_form(call, service)
        deployed = await service.deploy(manifest, text, module, call.principal.name, order_of(call))
        async with asking(self._gateway, service.states, deployed, call.header(b"authorization")):
            return reply(await service.settled(deployed.name, deployed.number, 10 if wait_s is None else wait_s))

    async def resume_udf(self, call: Call) -> Reply:
        """Go on where it stopped; answers how it does in each region. What is not paused goes on as it is."""
        service, name, wait_s = self._service, call.part("name"), WAIT.read(call)
        found = service.udfs.get(name)
        authorize_deploy(call.principal, service.touched(name))
        await service.udfs.resume(name, call.principal.name, wall_ms())
        return reply(await service.resumed(found, 10 if wait_s is None else wait_s))

    async def remove_udf(self, call: Call) -> Reply:
        """Answers when it is removed at home and here."""
        service, name = self._service, call.part("name")
        authorize_deploy(call.principal, service.touched(name))
        gone = await service.udfs.remove(name, call.principal.name, service.keep_ms(None), wall_ms())
        return reply({"removed": gone.name, "table": None if gone.manifest.is_map else gone.manifest.table or None})
