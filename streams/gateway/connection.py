"""Cutting a connection that the HTTP server would keep for as long as its client reads nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path


def cut(host: str, port: int) -> bool:
    """Shut the connection from this address and port down; whether there was one.

    ASGI has no such call, and the server waits until its last bytes are taken. So the descriptor is looked for among
    this process's own: a duplicate is taken first and its peer asked, so that a number that is reused meanwhile does
    no harm. Where descriptors cannot be listed nothing is cut: the connection ends when the client reads, or dies.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir("/dev/fd"):  # noqa: PTH208
            with contextlib.suppress(OSError, ValueError):
                if stat.S_ISSOCK(Path("/dev/fd", name).stat().st_mode) and _cut(int(name), (host, port)):
                    return True
    return False


def _cut(number: int, client: tuple[str, int]) -> bool:
    with socket.socket(fileno=os.dup(number)) as found:
        if found.family not in (socket.AF_INET, socket.AF_INET6) or found.getpeername()[:2] != client:
            return False
        found.shutdown(socket.SHUT_RDWR)
        return True
