"""Tells the supervisor of this machine which keyspaces' raw events its mirror carries (region/mirrored.py)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from streams.model.keyspace import Keyspace

log = logging.getLogger(__name__)
DIRECTORY = "mirrored"


def tell_mirror(data: Path, region: str, keyspaces: Iterable[Keyspace]) -> None:
    """Write down the keyspaces with `mirror: events`, if that has changed."""
    path = data / DIRECTORY / f"{region}.json"
    names = sorted(each.name for each in keyspaces if each.mirror == "events" and not each.is_strong)
    body = json.dumps({"keyspaces": names}) + "\n"
    try:
        if path.read_text() == body if path.exists() else not names:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(body)
        temporary.replace(path)
    except OSError as error:
        log.error("%s cannot be written, so the mirror goes on with what it mirrors: %s", path, error)
