"""Records histories: one file, many threads and processes of one machine, a line before each request and one after."""

from __future__ import annotations

import fcntl
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from streams.model.errors import BadInput
from streams.verify.history import FUNCTIONS, LINE_BYTES_MAX


def monotonic_ns() -> int:
    """The machine's monotonic clock, which all its processes share."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


class HistoryRecorder:
    """Appends to a history. Safe from any thread and process that opens the same file on one machine and one boot.

    A line is in the file (in the kernel, so a SIGKILL of the writer loses nothing) before the call returns. A line that
    a killed process left unfinished is taken away by the next writer, or by `close`: an invocation's was never sent,
    and a completion's operation counts as unknown. `name` must differ between recorders; by default it is random.
    """

    def __init__(
        self, path: Path | str, *, name: str | None = None, clock_ns: Callable[[], int] = monotonic_ns
    ) -> None:
        self._path, self._name, self._clock_ns = path, name, clock_ns
        self._fd, self._pid, self._prefix = -1, 0, ""
        self._open()
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._pid = os.getpid()
        fresh = f"{self._pid}.{secrets.token_hex(4)}"
        self._prefix = fresh if self._name is None else f"{self._name}.{self._pid}"

    def _follow_fork(self) -> None:
        """A forked child opens the file itself: file locks belong to the opening, which it shares with its parent."""
        if self._fd >= 0 and self._pid != os.getpid():
            os.close(self._fd)
            self._open()

    def client(self) -> RecordingClient:
        """A new logical process: one operation at a time, used by one thread or task."""
        return RecordingClient(self)

    def new_process(self) -> str:
        """A name for a process that no other has, also after a fork."""
        with self._lock:
            self._follow_fork()
            return f"{self._prefix}.{next(self._numbers)}"

    def write(self, process: str | int, kind: str, f: str, key: str | None, value: Any) -> None:
        """Append a line, stamped now. BadInput when the value is no JSON or the line is over a megabyte."""
        if f not in FUNCTIONS:
            raise BadInput(f"must be one of {', '.join(sorted(FUNCTIONS))}", field="f")
        line = {"process": process, "type": kind, "f": f, "key": key, "value": value, "time": self._clock_ns()}
        try:
            text = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError as error:
            raise BadInput(f"is not JSON: {error}", field="value") from None
        if len(text) > LINE_BYTES_MAX:
            raise BadInput(f"makes a line over {LINE_BYTES_MAX} bytes", field="value")
        with self._lock:
            if self._fd < 0:
                raise BadInput("the recorder is closed", field="recorder")
            self._follow_fork()
            self._locked(text)

    def _locked(self, text: bytes) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            self._mend()
            while text:
                text = text[os.write(self._fd, text) :]
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _mend(self) -> None:
        """Take away an unfinished last line; the lock is held, so its writer is gone."""
        size = os.fstat(self._fd).st_size
        if not size or os.pread(self._fd, 1, size - 1) == b"\n":
            return
        start = max(0, size - LINE_BYTES_MAX)
        kept = os.pread(self._fd, size - start, start).rfind(b"\n")
        os.ftruncate(self._fd, start + kept + 1 if kept >= 0 else start)

    def close(self) -> None:
        """Mend and close the file; again is harmless."""
        with self._lock:
            self._follow_fork()
            if self._fd >= 0:
                self._locked(b"")
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close."""
        self.close()


class RecordingClient:
    """A logical process of the history. After an unknown outcome it goes on under a new name, as Jepsen's do."""

    def __init__(self, recorder: HistoryRecorder) -> None:
        self._recorder = recorder
        self.process = recorder.new_process()
        self._open: Recorded | None = None

    def invoke(self, f: str, key: str | None, value: Any = None) -> Recorded:
        """Record an invocation; call it right before the request is sent. BadInput while another is open."""
        if self._open is not None and not self._open.done:
            raise BadInput("this client's last operation is still open", fix="one client for each concurrent request")
        self._recorder.write(self.process, "invoke", f, key, value)
        self._open = Recorded(self, self._recorder, f, key)
        return self._open

    def retire(self) -> None:
        """Take a new name."""
        self.process = self._recorder.new_process()


class Recorded:
    """An invocation that was recorded. Exactly one of `ok`, `fail`, `info` completes it.

    As a context manager it completes with `info` whatever was not completed inside, so an exception never looks like a
    failure that is certain.
    """

    def __init__(self, client: RecordingClient, recorder: HistoryRecorder, f: str, key: str | None) -> None:
        self._client, self._recorder, self._f, self._key = client, recorder, f, key
        self._process = client.process
        self.done = False

    def ok(self, value: Any = None) -> None:
        """It was answered; call it right after the answer is read."""
        self._complete("ok", value)

    def fail(self, value: Any = None) -> None:
        """It certainly did not take effect and never will."""
        self._complete("fail", value)

    def info(self, value: Any = None) -> None:
        """Nobody knows: it may take effect later, or never."""
        self._complete("info", value)
        self._client.retire()

    def _complete(self, kind: str, value: Any) -> None:
        if self.done:
            raise BadInput("this operation is complete already")
        self._recorder.write(self._process, kind, self._f, self._key, value)
        self.done = True

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Info, unless it was completed."""
        if not self.done:
            self.info(None if error is None else {"error": str(error)[:200]})
