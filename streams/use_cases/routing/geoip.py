"""Where an IP address is, by a database in MaxMind's format (GeoLite2-City or one like it)."""

from __future__ import annotations

import ipaddress
import logging
import threading
from pathlib import Path

import maxminddb

from streams.model.errors import BadInput
from streams.model.peer import check_location
from streams.model.place import Place

log = logging.getLogger(__name__)


class GeoIp:
    """A database on disk. A new file in its place is opened at the next question; a broken one is not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = self._stamp_now()
        self._reader = self._open()

    def place(self, address: str) -> Place | None:
        """The place of an IPv4 or IPv6 address; None when the database has none (private addresses, say)."""
        self._refresh()
        try:
            found = self._reader.get(address)
        except ValueError:  # an IPv6 address in a database of IPv4
            return None
        location = found.get("location") if isinstance(found, dict) else None
        if not isinstance(location, dict):
            return None
        try:
            latitude, longitude = check_location(location.get("latitude"), location.get("longitude"))
        except BadInput:
            return None
        return None if latitude is None or longitude is None else Place(latitude, longitude)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def _stamp_now(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise BadInput(
                f"{self._path}: {error.strerror}", field="--geoip", fix="name a database in MaxMind's format"
            ) from None
        return found.st_mtime_ns, found.st_size

    def _open(self) -> maxminddb.Reader:
        try:
            # In memory: a mapped file changes under the reader when an updater writes in place.
            return maxminddb.open_database(str(self._path), maxminddb.MODE_MEMORY)
        except (maxminddb.InvalidDatabaseError, OSError, ValueError) as error:
            raise BadInput(
                f"{self._path} is no GeoIP database: {error}", field="--geoip", fix="name one in MaxMind's format"
            ) from None

    def _refresh(self) -> None:
        with self._lock:
            try:
                stamp = self._stamp_now()
                if stamp == self._stamp:
                    return
                self._stamp = stamp
                self._reader = self._open()  # the old one closes when its last question is answered
            except BadInput as error:
                log.warning("the GeoIP database is kept as it was: %s", error)


def check_address(text: str, field: str = "ip") -> str:
    """An IP address in its usual form; BadInput."""
    try:
        return str(ipaddress.ip_address(text.strip().strip("[]")))
    except ValueError:
        raise BadInput(
            f"{text[:60]!r} is no IP address", field=field, fix="give IPv4 or IPv6, as 203.0.113.7"
        ) from None
