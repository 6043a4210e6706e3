"""The checked-in modules of wasm_udfs/, by name."""

from __future__ import annotations

from importlib.resources import files

from streams.model.errors import NotFound
from streams.wasm.manifest import Manifest, parse_manifest

_PATHS = {
    "counter": ("counter", "counter.wasm"),
    "kv": ("kv", "kv.wasm"),
    "max": ("extremum", "max.wasm"),
    "min": ("extremum", "min.wasm"),
    "record_decoder": ("record_decoder", "record_decoder.wasm"),
    "row_encoder": ("row_encoder", "row_encoder.wasm"),
    "anomaly": ("anomaly", "anomaly.wasm"),
    "order_book": ("order_book", "order_book.wasm"),
    "strong_kv": ("strong_kv", "strong_kv.wasm"),
    "telemetry": ("telemetry", "telemetry.wasm"),
}
_BY_MERGE = {"counter": "counter", "lww": "kv", "max": "max", "min": "min"}


def builtin_module(name: str) -> bytes:
    """The bytes of a built-in module. NotFound for another name."""
    return files("wasm_udfs").joinpath(*_path(name)).read_bytes()


def builtin_manifest(name: str) -> Manifest:
    """The udf.toml that a built-in module was built with. NotFound for another name."""
    return parse_manifest(files("wasm_udfs").joinpath(_path(name)[0], "udf.toml").read_text())


def _path(name: str) -> tuple[str, str]:
    if name not in _PATHS:
        raise NotFound(f"there is no built-in module {name!r:.80}", field="udf", fix=f"one of {', '.join(_PATHS)}")
    return _PATHS[name]


def builtin_for_merge(merge: str) -> str:
    """The name of the built-in UDF that folds a keyspace of this merge type. NotFound if there is none."""
    if merge not in _BY_MERGE:
        raise NotFound(f"no built-in UDF folds merge type {merge!r:.80}", field="merge")
    return _BY_MERGE[merge]
