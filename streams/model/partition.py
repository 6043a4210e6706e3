"""Partitions by region: `iot:region:us-east` is what us-east's gateways accepted in keyspace `device`."""

from __future__ import annotations

from collections.abc import Iterable

from streams.model.errors import NotFound

PARTITION_KEYSPACE = "device"
_PREFIX = "iot:region:"


def partition_of(region: str) -> str:
    """The name of a region's partition."""
    return f"{_PREFIX}{region}"


def is_partition(text: str) -> bool:
    """Whether `text` has the form of a partition's name; the region may still be unknown."""
    return text.startswith(_PREFIX)


def region_of(partition: str, regions: Iterable[str]) -> str:
    """The region whose partition it is; NotFound names the partitions of the known `regions`."""
    known = tuple(regions)
    region = partition.removeprefix(_PREFIX)
    if not is_partition(partition) or region not in known:
        raise NotFound(
            f"there is no partition {partition[:80]!r}",
            field="partition",
            fix=f"choose one of {', '.join(map(partition_of, known))}",
        )
    return region
