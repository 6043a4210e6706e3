"""Functions for tests: built from C, deployed to a unit gateway or run without one."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from streams.definitions.deployment import Deployment
from streams.gateway.context import Gateway
from streams.gateway.functions import FunctionService
from streams.wasm import build
from streams.wasm.function_engine import FunctionModules

ROOT = Path(__file__).parents[2]
HANDLE_REQUEST = ROOT / "wasm_udfs" / "handle_request"
SOURCES = ROOT / "tests" / "unit" / "hostile_udfs"
HOSTILE_TOML = """
name = "hostile"
version = "1.0.0"
abi = 1
kind = "function"
capabilities = ["tables.read", "put", "clock", "random", "log"]
tables = ["kv", "score"]
puts = ["kv", "best"]
[limits]
memory_bytes = 33554432
deadline_s = 0.3
output_bytes = 1048576
table_rows = 100
events = 8
concurrency = 4
"""


@cache
def hostile_module() -> bytes:
    """hostile_function.c, built once."""
    return build.compile_source(SOURCES / "hostile_function.c", None)


def deployment(text: str, module: bytes) -> Deployment:
    """A deployment of them."""
    return Deployment.make(text, module, 1_000, "test", "us-east")


def handle_request() -> Deployment:
    """The example, as it is checked in."""
    module = (HANDLE_REQUEST / "handle_request.wasm").read_bytes()
    return deployment((HANDLE_REQUEST / "udf.toml").read_text(), module)


def hostile(changes: dict[str, str] | None = None) -> Deployment:
    """The function that misbehaves, with some of its manifest replaced."""
    text = HOSTILE_TOML
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    return deployment(text, hostile_module())


async def serve(gateway: Gateway, modules: Path, *deployed: Deployment) -> FunctionService:
    """Functions on a gateway, once they are loaded; `close` it."""
    service = FunctionService(gateway, FunctionModules(modules))
    gateway.functions = service
    service.follow({each.name: each for each in deployed})
    for each in deployed:
        await service.find(each.name)
    return service
