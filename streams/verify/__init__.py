"""Checks histories of concurrent clients for linearizability, and records them.

`HistoryRecorder` writes a history, `read_history` reads and validates one, `check_history` judges it with porcupine.
"""

from streams.verify.checker import Counterexample, Outcome, Verdict, check_history
from streams.verify.history import HISTORY_BYTES_MAX, Operation, read_history
from streams.verify.recorder import HistoryRecorder, Recorded, RecordingClient

__all__ = [
    "HISTORY_BYTES_MAX",
    "Counterexample",
    "HistoryRecorder",
    "Operation",
    "Outcome",
    "Recorded",
    "RecordingClient",
    "Verdict",
    "check_history",
    "read_history",
]
