"""Event-log platform for edge computing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams.client import connect as connect
    from streams.client import connect_sync as connect_sync

__all__ = ["connect", "connect_sync"]


def __getattr__(name: str) -> Any:
    """The client, imported when it is first asked for: every room imports this package."""
    if name in __all__:
        from streams import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
