"""A Python UDF's source to a component, with `componentize-py` from its wheel, as steady.py runs it."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path

from streams.model.errors import BadInput, Unavailable
from streams.model.keyspace import BUILTIN
from streams.wasm.manifest import Manifest
from streams.wasm.steady import APP, Component, run_componentize

SCHEMA_IDS = {
    597403240: "streams.CounterAdd",
    1968485633: "streams.Number",
    497969218: "streams.Reading",
    293954584: "streams.Json",
}
"""Fingerprints of the schemas that the Python SDK reads and writes (a test holds them to schemas/*.avsc)."""
_SOURCE = "streams_udf_source"
_APP = """\
import streams_udf
import {source}
import wit_world

streams_udf.SCHEMAS.update({schemas!r})
_udf = streams_udf.udf_of({source}, {kind!r})
_udf.merge, _udf.writes = {merge!r}, {writes!r}
_dispatcher = streams_udf.Dispatcher(_udf)


class WitWorld(wit_world.WitWorld):
    def call(self, name, input):
        return _dispatcher.call(name, input)
"""


def componentize(source: Path, manifest: Manifest) -> Component:
    """A Python UDF as a component without imports. BadInput with the exception when it cannot be imported."""
    if find_spec("componentize_py") is None:
        raise Unavailable("the compiler of Python UDFs is not installed", fix="pip install componentize-py")
    code = source.read_bytes()
    try:
        compile(code, source.name, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise BadInput(
            f"{source.name}:{error.lineno}: {error.msg}", field="source", fix="correct the source and build again"
        ) from None
    builtin = {each.name: each.schema for each in BUILTIN}
    written = zip(manifest.puts, manifest.writes, strict=True)
    text = _APP.format(
        source=_SOURCE,
        schemas=SCHEMA_IDS,
        kind=manifest.kind,
        merge=int(manifest.merges[0]) if manifest.merges else 0,
        writes=tuple(schema or builtin.get(name, "") for name, schema in written),
    )
    with tempfile.TemporaryDirectory() as scratch:
        return run_componentize(source, {_SOURCE: code, APP: text.encode()}, Path(scratch))
