"""Places on the earth: distances, and where regions of usual names are."""

from __future__ import annotations

import math
from dataclasses import dataclass

EARTH_RADIUS_KM = 6371.0088
"""The mean radius (IUGG)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Degrees: latitude north, longitude east."""

    latitude: float
    longitude: float

    def distance_km(self, other: Place) -> float:
        """Along the great circle, by the haversine formula (the error of taking a sphere is below 0.6 %)."""
        lat1, lat2 = math.radians(self.latitude), math.radians(other.latitude)
        across = math.radians(other.longitude - self.longitude)
        half = math.sin((lat2 - lat1) / 2) ** 2 + math.cos(lat1) * math.cos(lat2) * math.sin(across / 2) ** 2
        return 2 * EARTH_RADIUS_KM * math.asin(min(1.0, math.sqrt(half)))


REGIONS = {
    "us-east": Place(38.9, -77.4),
    "us-west": Place(45.6, -121.2),
    "us-central": Place(41.3, -95.9),
    "us-south": Place(32.8, -96.8),
    "ca-central": Place(45.5, -73.6),
    "sa-east": Place(-23.5, -46.6),
    "eu-west": Place(53.3, -6.3),
    "eu-central": Place(50.1, 8.7),
    "eu-north": Place(59.3, 18.1),
    "eu-south": Place(45.5, 9.2),
    "uk-south": Place(51.5, -0.1),
    "af-south": Place(-33.9, 18.4),
    "me-south": Place(26.1, 50.6),
    "me-central": Place(24.5, 54.4),
    "il-central": Place(32.1, 34.8),
    "ap-south": Place(19.1, 72.9),
    "ap-southeast": Place(1.3, 103.8),
    "ap-northeast": Place(35.7, 139.7),
    "ap-east": Place(22.3, 114.2),
    "au-southeast": Place(-33.9, 151.2),
}
"""Cities of the data centres that clouds call so; a gateway's `--location` says otherwise."""


def place_of_region(name: str) -> Place | None:
    """Where a region of this name is by convention (`eu-west`, also `eu-west-1`); None when it has no usual name."""
    stem, _, number = name.rpartition("-")
    return REGIONS.get(stem if stem and number.isdigit() else name)
