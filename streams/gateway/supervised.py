"""Tells the supervisor of this machine what the region needs of it: which UDFs' workers to run (region/deployed.py),
which keyspaces' raw events to mirror (region/mirrored.py). Files, so that supervision needs no Kafka."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from streams.model.keyspace import Keyspace

log = logging.getLogger(__name__)
UDFS, MIRRORED = "udfs", "mirrored"


def tell_workers(data: Path, region: str, names: Iterable[str]) -> None:
    """Say which UDFs the region runs, by their workers' labels: a supervisor here keeps a worker for each."""
    _tell(data / UDFS / f"{region}.json", {"udfs": sorted(names)})


def tell_mirror(data: Path, region: str, keyspaces: Iterable[Keyspace]) -> None:
    """Say which keyspaces have `mirror: events`."""
    names = sorted(each.name for each in keyspaces if each.mirror == "events" and not each.is_strong)
    path = data / MIRRORED / f"{region}.json"
    if names or path.exists():
        _tell(path, {"keyspaces": names})


def _tell(path: Path, says: dict[str, list[str]]) -> None:
    body = json.dumps(says) + "\n"
    try:
        if path.exists() and path.read_text() == body:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(body)
        temporary.replace(path)
    except OSError as error:
        log.error("%s cannot be written, so what runs goes on as it is: %s", path, error)
