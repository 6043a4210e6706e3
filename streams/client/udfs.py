"""Deploying a UDF directory: what is sent, and building it first where its source is newer."""

from __future__ import annotations

import tomllib
import uuid
from pathlib import Path

from streams.model.errors import BadInput


def udf_form(directory: str | Path) -> tuple[bytes, str]:
    """A UDF directory as a multipart body, and its content type.

    The module is `<name>.wasm`; where there is none, or its source is newer, it is built and written first. BadInput
    when there is neither, or udf.toml cannot be read; the gateway judges the rest.
    """
    place = Path(directory)
    try:
        manifest = (place / "udf.toml").read_bytes()
    except OSError as error:
        raise BadInput(
            f"cannot read {place / 'udf.toml'}: {error.strerror}", field="DIR", fix="name a UDF's directory"
        ) from None
    from streams.wasm.packing import packed

    return multipart({"manifest": manifest, "module": packed(ready_module(place, manifest))})


def ready_module(place: Path, manifest: bytes) -> bytes:
    """The bytes of a UDF directory's module, built first when that is due. BadInput."""
    try:
        name = str(tomllib.loads(manifest.decode()).get("name", ""))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"udf.toml is not TOML: {error}", field="manifest") from None
    if not name or "/" in name:
        raise BadInput("udf.toml does not give it", field="name", fix='add name = "…"')
    module, source = place / f"{name}.wasm", _source(place, name)
    if source is not None and (not module.is_file() or module.stat().st_mtime < source.stat().st_mtime):
        from streams.wasm.build import write_modules

        write_modules(place)
    try:
        return module.read_bytes()
    except OSError:
        raise BadInput(
            f"there is neither {name}.wasm nor {name}.c, .zig or .py in {place}",
            field="module",
            fix="see `streams udf new`",
        ) from None


def _source(place: Path, name: str) -> Path | None:
    found = (place / f"{name}{suffix}" for suffix in (".c", ".zig", ".py"))
    return next((each for each in found if each.is_file()), None)


def multipart(parts: dict[str, bytes]) -> tuple[bytes, str]:
    """The parts as `multipart/form-data`, and its content type."""
    boundary = uuid.uuid4().hex
    body = bytearray()
    for name, content in parts.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    body += f"--{boundary}--\r\n".encode()
    return bytes(body), f"multipart/form-data; boundary={boundary}"
