"""Where things live on this machine: the per-user cache and the per-user default data directory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

APPLICATION = "streams"


def cache_dir() -> Path:
    """The per-user cache directory, made if missing: `STREAMS_CACHE`, else the platform's own cache place."""
    chosen = os.environ.get("STREAMS_CACHE")
    path = Path(chosen).expanduser() if chosen else _platform_dir("XDG_CACHE_HOME", ".cache", "Library/Caches")
    path = path.absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def data_dir(chosen: Path | str | None = None) -> Path:
    """The data directory of a system: `chosen` (`--data`), else `STREAMS_DATA`, else a directory of the user's.

    The directory is not made here: a command that only looks must not leave one behind.
    """
    name = chosen or os.environ.get("STREAMS_DATA")
    if name:
        return Path(name).expanduser().absolute()
    return _platform_dir("XDG_DATA_HOME", ".local/share", "Library/Application Support").absolute()


def _platform_dir(variable: str, linux: str, mac: str) -> Path:
    base = os.environ.get(variable)
    if base:
        return Path(base).expanduser() / APPLICATION
    return Path.home() / (mac if sys.platform == "darwin" else linux) / APPLICATION
