"""The `ingest` bench on Quix Streams: `tumbling_window(10 s).reduce(...)` of each device into its RocksDB store with
its changelog; windows are by the records' timestamps.

Arguments: bootstrap topic consumer_group data_dir warmup_events total_events deadline_seconds.
Prints one line of JSON: events timed and the seconds from the last warm-up event until the checkpoint with the last
event is committed. Everything not set here is Quix Streams' default.

A script of its own, run by the Python of an environment of its own (`quix_environment.py`).
"""

import importlib
import json
import sys
import threading
import time

BOOTSTRAP, TOPIC, GROUP, DATA_DIR, WARMUP, TOTAL, DEADLINE = sys.argv[1:8]
warmup, total = int(WARMUP), int(TOTAL)
progress = {"seen": 0, "start": 0.0, "end": 0.0}


def seen(_topic: str, _partition: int, _offset: int) -> None:
    """Counts events; at the last one the application stops, which commits at once and not in 5 s."""
    progress["seen"] += 1
    if progress["seen"] == warmup:
        progress["start"] = time.perf_counter()
    if progress["seen"] == total:
        app.stop()


def reduced(window: list[float], value: float) -> list[float]:
    """The window with one more reading."""
    return [window[0] + 1, window[1] + value, min(window[2], value), max(window[3], value)]


app = importlib.import_module("quixstreams").Application(  # no dependency of ours
    BOOTSTRAP,
    consumer_group=GROUP,
    auto_offset_reset="earliest",
    state_dir=DATA_DIR,
    on_message_processed=seen,
    loglevel="WARNING",
)
readings = app.dataframe(app.topic(TOPIC, key_deserializer="bytes", value_deserializer="double"))
readings.tumbling_window(10_000, grace_ms=86_400_000).reduce(reduced, lambda v: [1, v, v, v]).current()

context = app._processing_context
commit = context.commit_checkpoint


def timed_commit(force: bool = False, **options: bool) -> None:
    """Commits; notes when the last commit, which is forced, was done."""
    commit(force, **options)
    if force and progress["seen"] == total:
        progress["end"] = time.perf_counter()


context.commit_checkpoint = timed_commit
guard = threading.Timer(float(DEADLINE), app.stop)
guard.daemon = True
guard.start()
app.run()
if not progress["end"]:
    sys.exit(f"only {progress['seen']} of {total} events were processed")
print(json.dumps({"events": total - warmup, "seconds": progress["end"] - progress["start"]}))
