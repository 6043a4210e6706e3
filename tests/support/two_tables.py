"""One input with two tables: the counter of `score`, and the same again under another name."""

from __future__ import annotations

from streams.model.fold_table import DerivedFold
from streams.model.keyspace import BUILTIN
from streams.model.row import MergeType

KEYSPACES = BUILTIN[:1]
TWICE = (DerivedFold("score-again", "score", "counter", MergeType.COUNTER, "streams.CounterAdd"),)
