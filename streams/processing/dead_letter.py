"""Dead letters: events that no table takes, kept with the reason on a topic of their own."""

from __future__ import annotations

from collections.abc import Sequence

from streams.processing.black_box import HEADER
from streams.processing.ports import Output, Rejected

REASON_BYTES_MAX = 500


def dead_letter(topic: str, source: tuple[str, int], rejected: Rejected, udf_hash: str, now_ms: int) -> Output:
    """The record for `rejected`, read from `source` (topic, partition).

    Key, value and headers as they came; of a frame's put, its own key and value, and `dead_letter_part`. Added headers
    say why (`dead_letter_reason`), from where, which UDF and when. Of an event that stopped a UDF, `dead_letter_box` is
    its black box, and `dead_letter_outcome` is `skipped`, or `held` when the UDF pauses before it and nothing is lost.
    """
    added: tuple[tuple[str, bytes], ...] = (
        ("dead_letter_reason", rejected.reason.encode()[:REASON_BYTES_MAX]),
        ("dead_letter_topic", source[0].encode()),
        ("dead_letter_partition", str(source[1]).encode()),
        ("dead_letter_offset", str(rejected.offset).encode()),
        ("dead_letter_udf", udf_hash.encode()),
        ("dead_letter_time_ms", str(now_ms).encode()),
    )
    if rejected.part >= 0:
        added = (*added, ("dead_letter_part", str(rejected.part).encode()))
    if rejected.box:
        outcome = b"held" if rejected.held else b"skipped"
        added = (*added, ("dead_letter_outcome", outcome), (HEADER, rejected.box))
    return Output(topic, 0, rejected.key, rejected.value, (*_as_they_came(rejected.headers), *added))


def _as_they_came(headers: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in headers if not name.startswith("dead_letter_")]
