"""Which gateway should serve a user: the healthy one with the least estimated round trip."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from streams.model.errors import Unavailable
from streams.model.place import Place

LAST_MILE_MS = 2.0
MS_PER_KM = 1.5 * 2 / 200.0
"""Light in fibre goes 200 km a millisecond, there and back; cables are about half as long again as the great circle."""

EQUAL_MS = 1.0
"""Estimates this close are equal: users of different places are then spread over the nodes, each staying with one."""

DELAY_FREE_MS = 10.0
"""An event loop that makes work wait less than this is not busy: it is noise, and sends nobody elsewhere."""

FALLBACKS_MAX = 5


@dataclass(frozen=True, slots=True)
class Node:
    """A gateway as the deciding one sees it.

    `rtt_ms`: measured from there, None when it never answered. `delay_ms`: how long its event loop makes work wait.
    """

    name: str
    region: str
    url: str
    place: Place | None = None
    healthy: bool = True
    rtt_ms: float | None = None
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A healthy node with its distance and estimate for one user; None where nothing is known to reckon with."""

    node: Node
    distance_km: float | None
    estimated_rtt_ms: float | None

    def to_json(self) -> dict[str, object]:
        """As an answer lists it."""
        return {
            "node": self.node.name,
            "region": self.node.region,
            "url": self.node.url,
            "distance_km": None if self.distance_km is None else round(self.distance_km, 1),
            "estimated_rtt_ms": None if self.estimated_rtt_ms is None else round(self.estimated_rtt_ms, 2),
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """The node to go to, and where else to go, best first."""

    primary: Candidate
    fallbacks: tuple[Candidate, ...]

    def to_json(self) -> dict[str, object]:
        """The contract's shape."""
        first = self.primary.to_json()
        return {"primary_node": first.pop("node"), **first, "fallbacks": [each.to_json() for each in self.fallbacks]}


def rtt_by_distance_ms(distance_km: float) -> float:
    """What a round trip over this distance takes on an uncongested network, roughly."""
    return LAST_MILE_MS + distance_km * MS_PER_KM


def estimate_ms(user: Place | None, here: Place | None, node: Node) -> float | None:
    """The round trip from `user` to `node`, milliseconds; None when neither place nor measurement says anything.

    By distance, and by as much more as the measured round trip from `here` to the node exceeds what that distance
    takes: a node behind a slow link, or one that is busy, counts as farther. A measurement never brings a node nearer:
    it was made from here, not from the user. Without the user's or the node's place: by way of here, as measured.
    """
    busy_ms = max(0.0, node.delay_ms - DELAY_FREE_MS)
    if user is not None and node.place is not None:
        excess_ms = 0.0
        if here is not None and node.rtt_ms is not None:
            excess_ms = max(0.0, node.rtt_ms - rtt_by_distance_ms(here.distance_km(node.place)))
        return rtt_by_distance_ms(user.distance_km(node.place)) + excess_ms + busy_ms
    if node.rtt_ms is None:
        return None
    to_here_ms = rtt_by_distance_ms(user.distance_km(here)) if user is not None and here is not None else 0.0
    return to_here_ms + node.rtt_ms + busy_ms


def choose(user: Place | None, here: Place | None, nodes: Iterable[Node]) -> Decision:
    """The decision for a user at `user` (None: unknown), made at `here`. Unavailable when no node is healthy."""
    found = [
        Candidate(
            node,
            None if user is None or node.place is None else user.distance_km(node.place),
            estimate_ms(user, here, node),
        )
        for node in nodes
        if node.healthy
    ]
    if not found:
        raise Unavailable("no gateway of any region is healthy", fix="see `streams status`; try again in a moment")
    ordered = _spread(sorted(found, key=_order), user)
    return Decision(ordered[0], tuple(ordered[1 : 1 + FALLBACKS_MAX]))


def _order(candidate: Candidate) -> tuple[bool, float, str, str]:
    estimate = candidate.estimated_rtt_ms
    return estimate is None, estimate or 0.0, candidate.node.region, candidate.node.name


def _spread(ordered: Sequence[Candidate], user: Place | None) -> list[Candidate]:
    """Those as good as the best, in the order of highest random weight (Thaler and Ravishankar 1998) for the user's
    place; then the others."""
    best_ms = ordered[0].estimated_rtt_ms
    if user is None or best_ms is None:
        return list(ordered)
    equal = [each for each in ordered if (each.estimated_rtt_ms or best_ms) - best_ms <= EQUAL_MS]
    same_region = [each for each in equal if each.node.region == ordered[0].node.region]

    def weight(candidate: Candidate) -> bytes:
        text = f"{user.latitude:.3f},{user.longitude:.3f},{candidate.node.region}/{candidate.node.name}"
        return hashlib.blake2b(text.encode(), digest_size=8).digest()

    first = sorted(same_region, key=weight)
    return [*first, *(each for each in ordered if each not in first)]
