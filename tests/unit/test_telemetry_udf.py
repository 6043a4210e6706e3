"""The constants that the telemetry UDF is built with are what the rest of the system uses."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from streams.serde import load_builtin
from streams.wasm.manifest import read_manifest


def test_the_schema_ids_in_the_manifest_are_the_schemas() -> None:
    manifest = read_manifest(Path(str(files("wasm_udfs").joinpath("sdk"))).parent / "telemetry")
    constants, schemas = dict(manifest.constants), load_builtin()
    assert constants["READING_ID"] == schemas["streams.Reading"].id
    assert constants["PANES_ID"] == schemas["streams.TelemetryPanes"].id
    assert constants["SEGMENT_ID"] == schemas["streams.TelemetrySegment"].id
    assert constants["DEVICE_ID"] == schemas["streams.TelemetryDevice"].id
    assert manifest.outputs == ("late.device",)
