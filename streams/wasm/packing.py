"""How a module travels: a component (a UDF in Python holds an interpreter, 18 MB) is packed with gzip, to a third."""

from __future__ import annotations

import gzip
import zlib
from functools import lru_cache

from streams.model.errors import BadInput
from streams.wasm.abi import MODULE_BYTES_MAX

_LEAST_BYTES = 1 << 20
_GZIP = b"\x1f\x8b"


@lru_cache(maxsize=1)
def packed(module: bytes) -> bytes:
    """The module as it travels: small ones as they are. The last one is remembered: packing takes a second."""
    return gzip.compress(module, 6, mtime=0) if len(module) > _LEAST_BYTES else module


def unpacked(data: bytes) -> bytes:
    """The module that came as `data`. BadInput when it is not whole, or over `MODULE_BYTES_MAX` when unpacked."""
    if data[:2] != _GZIP:
        return data
    reader = zlib.decompressobj(wbits=31)
    try:
        module = reader.decompress(data, MODULE_BYTES_MAX + 1)
    except zlib.error as error:
        raise BadInput(f"the packed module cannot be read: {error}", field="module", fix="send it again") from None
    if len(module) > MODULE_BYTES_MAX:
        raise BadInput(f"the module has over {MODULE_BYTES_MAX} bytes", field="module", fix="make it smaller")
    if not reader.eof:
        raise BadInput("the packed module is cut off", field="module", fix="send it again")
    return module
