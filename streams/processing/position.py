"""Where a task begins to read its input, and when it must not: README.md says which losses are none."""

from __future__ import annotations

import logging

from streams.model.errors import StreamsError
from streams.model.fold_table import FoldTable
from streams.model.marker import InputPosition
from streams.model.row import MergeType
from streams.processing.ports import InputBounds

log = logging.getLogger(__name__)


class PositionError(StreamsError):
    """The marker does not fit the input's log. Needs a human: resetting silently would lose or repeat events."""

    status = 500
    title = "position error"


def lost_are_expired(table: FoldTable, *, deployed: bool) -> bool:
    """Whether what retention has removed from the table's input has expired in the table too.

    So it is for rows that each put replaces, or that stand for ten seconds of time, in keyspaces with a TTL: retention
    keeps events for longer. A counter's or an extremum's life goes on while puts come, and is made of all of them; what
    a deployed UDF keeps in its rows nobody knows.
    """
    return table.keyspace.ttl_ms is not None and table.merge in (MergeType.LWW, MergeType.OPAQUE) and not deployed


def start_of(table: str, input_key: str, at: InputPosition | None, bounds: InputBounds, *, expired: bool) -> int:
    """The position to read from: the marker's, or the log's start without one. PositionError; `expired`: as `after`."""
    if at is None:
        return bounds.start
    where = f"{table}: the table has {input_key} up to {at.next}"
    fix = "restore the topic, or remove the table's changelog and local state to build it anew"
    if at.topic_id != bounds.topic_id:
        raise PositionError(f"{where} of topic id {at.topic_id}, but its id is {bounds.topic_id} now", fix=fix)
    if at.next > bounds.end:
        raise PositionError(f"{where}, but its log covers {bounds.start} to {bounds.end}", fix=fix)
    return after(table, input_key, at.next, bounds.start, expired=expired)


def after(table: str, input_key: str, position: int, log_start: int, *, expired: bool) -> int:
    """Where to go on when retention has cut the log up to `log_start`: there, if what was lost has `expired`.

    PositionError when the table may need it: going on would be silent loss.
    """
    if position >= log_start:
        return position
    lost = f"{table}: events {position} to {log_start} of {input_key} were deleted before they were folded"
    if not expired:
        raise PositionError(
            f"{lost}: this worker was behind for longer than the topic's retention",
            fix="give the events topic a longer retention, then remove the table's changelog topic and the worker's "
            "local copy: the table is built anew, of what the log still holds",
        )
    log.error(
        "%s. They were older than the keyspace's TTL and have expired, but for puts that had a longer TTL of their "
        "own: those are lost. Going on from %d",
        lost,
        log_start,
    )
    return log_start
