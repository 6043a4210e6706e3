"""Where definitions are kept: the interface that the store needs, and the errors of its writer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from streams.definitions.entries import Entry
from streams.kafka.errors import Fenced, UnknownOutcome

__all__ = ["DefinitionsLog", "Fenced", "UnknownOutcome"]


class DefinitionsLog(Protocol):
    """One process's access: it reads its own region's copy, and writes the home region's original.

    Writing is sequenced by claims: `claim` shuts out every other writer before it returns, so between a claim and its
    `append` nobody else has written, or the append fails.
    """

    async def start(self, timeout_s: float) -> None:
        """Connect and wait until the local copy exists; Timeout or Unavailable otherwise."""
        ...

    async def stop(self) -> None:
        """Disconnect; idempotent."""
        ...

    async def read(self, timeout_s: float) -> Sequence[Entry]:
        """The next entries of the local copy, in order; waits up to `timeout_s` for the first."""
        ...

    async def at_end(self) -> bool:
        """Whether `read` has handed out everything that the local copy held when this was called."""
        ...

    async def claim(self, timeout_s: float) -> Sequence[Entry]:
        """Become the only writer; returns the home region's entries that no earlier claim returned, up to its end."""
        ...

    async def append(self, entries: Sequence[Entry]) -> None:
        """Append all or none at home. Fenced: none, somebody else claimed. UnknownOutcome: claim again and look."""
        ...
