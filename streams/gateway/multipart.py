"""`multipart/form-data` bodies that are in memory: named parts of bytes (RFC 7578)."""

from __future__ import annotations

import re

from streams.model.errors import BadInput, UnsupportedMedia

PARTS_MAX = 8
_BOUNDARY = re.compile(r'boundary=(?:"([^"\\\r\n]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name=(?:"([^"\r\n]*)"|([^\s;"]+))', re.IGNORECASE)


def parse_multipart(content_type: str, body: bytes) -> dict[str, bytes]:
    """The parts by name. UnsupportedMedia for another media type; BadInput for a malformed body or a repeated part."""
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise UnsupportedMedia(
            "the body is not multipart/form-data", field="Content-Type", fix="send the parts manifest and module"
        )
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise BadInput("no boundary is named", field="Content-Type", fix="multipart/form-data; boundary=…")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
    pieces = (b"\r\n" + body).split(delimiter, PARTS_MAX + 2)
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise BadInput("the multipart body does not end", field="body", fix=f"send at most {PARTS_MAX} whole parts")
    parts: dict[str, bytes] = {}
    for piece in pieces[1:-1]:
        head, blank, content = piece.lstrip(b" \t").removeprefix(b"\r\n").partition(b"\r\n\r\n")
        name = _name_of(head)
        if not blank or name is None or name in parts:
            raise BadInput("a part is malformed, unnamed or there twice", field="body", fix="name each part once")
        parts[name] = content
    return parts


def _name_of(head: bytes) -> str | None:
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-disposition:"):
            found = _NAME.search(line)
            if found is not None:
                return (found[1] if found[1] is not None else found[2]).decode("utf-8", "replace")
    return None
