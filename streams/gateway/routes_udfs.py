"""`/v1/udfs`: deploy a UDF in all regions, see where it runs, remove it."""

from __future__ import annotations

from streams.gateway.auth import ANYONE, authorize, authorize_deploy
from streams.gateway.context import Gateway
from streams.gateway.endpoint import Operation
from streams.gateway.http import Call, Reply, reply
from streams.gateway.multipart import parse_multipart
from streams.gateway.params import IntParam, Param
from streams.gateway.udfs import UdfService
from streams.model.errors import BadInput, Unavailable
from streams.wasm.admission import admit_manifest
from streams.wasm.manifest import Manifest
from streams.wasm.packing import unpacked

NAME = Param("name", "path", "The UDF", {"type": "string"}, True)
WAIT = IntParam("wait", "How many seconds to wait, at most, for all regions that are heard from", 0, 50, 10)
_FORM: dict[str, object] = {
    "type": "object",
    "required": ["manifest", "module"],
    "properties": {
        "manifest": {"type": "string", "description": "udf.toml"},
        "module": {"type": "string", "format": "binary", "description": "The WebAssembly module"},
    },
}


def touched(manifest: Manifest) -> tuple[str, ...]:
    """The keyspaces and tables that a UDF reads or puts to: who deploys or sees it must be allowed to."""
    function = manifest.function
    return manifest.inputs if function is None else tuple(dict.fromkeys((*function.tables, *function.puts)))


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
                "Deploy a fold, map, filter, flat_map or function in all regions",
                "deploy",
                (WAIT,),
                {"multipart/form-data": _FORM},
                {400: "The manifest or the module is refused", 409: "It does not fit what is deployed"},
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
        if self._gateway.udfs is None:
            raise Unavailable("this gateway serves no UDFs", fix="start it with `streams gateway`")
        return self._gateway.udfs

    async def list_udfs(self, call: Call) -> Reply:
        """Those whose inputs the caller may read, by name."""
        service, who = self._service, call.principal
        found = [
            service.described(each)
            for _, each in sorted(service.udfs.live.items())
            if who is ANYONE or all(who.may(keyspace, "read") for keyspace in touched(each.manifest))
        ]
        return reply({"udfs": found})

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
        parts = parse_multipart(call.header(b"content-type") or "", await call.body())
        for name in ("manifest", "module"):
            if name not in parts:
                raise BadInput("the part is missing", field=name, fix="send the parts manifest and module")
        try:
            text = parts["manifest"].decode()
        except UnicodeDecodeError:
            raise BadInput("udf.toml is not UTF-8", field="manifest", fix="save it as UTF-8") from None
        manifest = admit_manifest(text, service.caps)
        authorize_deploy(call.principal, (*touched(manifest), *manifest.puts))
        deployed = await service.deploy(manifest, text, unpacked(parts["module"]), call.principal.name)
        return reply(await service.settled(deployed, 10 if wait_s is None else wait_s))

    async def remove_udf(self, call: Call) -> Reply:
        """Answers when it is removed at home and here."""
        service, name = self._service, call.part("name")
        authorize_deploy(call.principal, touched(service.udfs.get(name).manifest))
        gone = await service.udfs.remove(name)
        return reply({"removed": gone.name, "table": None if gone.manifest.is_map else gone.manifest.table})
