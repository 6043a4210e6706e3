"""How a transaction without its marker ended: what the coordinator proves, else what is safe."""

from __future__ import annotations

import pytest

from streams.gateway.log_watch import safe_end
from streams.kafka.hanging import OpenTransaction, _Known, _outcome
from streams.kafka.run import TP

AT = OpenTransaction(TP("topic", 0), 7, producer_id=1, producer_epoch=250, coordinator_epoch=3)


@pytest.mark.parametrize(
    ("state", "epoch", "committed"),
    [
        ("CompleteAbort", 251, False),
        ("CompleteCommit", 251, True),
        ("Empty", 251, None),  # begun anew: the next epoch is of its start, not of an end
        ("CompleteCommit", 252, None),  # a later transaction's
        ("CompleteCommit", 250, None),  # an older client's: which of the many in this epoch?
        ("Ongoing", 250, None),
    ],
)
def test_only_the_next_epoch_speaks_of_this_transaction(state: str, epoch: int, committed: bool | None) -> None:
    assert _outcome(AT, _Known(state, epoch, frozenset())) is committed


def test_what_no_coordinator_knows_is_not_guessed() -> None:
    assert _outcome(AT, None) is None


@pytest.mark.parametrize(
    ("topic", "commit"),
    [
        ("eu-west.table.score", True),
        ("eu-west.udfs", True),
        ("mm2-offsets.eu-west.internal", False),
        ("table.score", None),
        ("eu-western.table", None),
        ("mm2-notes", None),
    ],
)
def test_copies_are_committed_and_positions_are_not(topic: str, commit: bool | None) -> None:
    assert safe_end(topic, ("us-east", "eu-west")) is commit
