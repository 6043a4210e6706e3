"""The `ingest` bench on stock Faust: an agent keeps count, sum, min and max of each device's 10 s windows in a windowed
`Table` in rocksdict with its changelog on; windows are by the records' timestamps.

Arguments: bootstrap topic application_id data_dir warmup_events total_events deadline_seconds.
Prints one line of JSON: events timed and the seconds from the last warm-up event handed to the agent until every change
of the table is acknowledged by the broker. Everything not set here is Faust's default.

A script of its own, run in its own process: Faust reads `sys.argv` and the environment when it is imported.
"""

import asyncio
import json
import logging
import struct
import sys
import time

BOOTSTRAP, TOPIC, APPLICATION_ID, DATA_DIR, WARMUP, TOTAL, DEADLINE = sys.argv[1:8]
sys.argv = [sys.argv[0]]

import faust  # noqa: E402

app = faust.App(
    APPLICATION_ID,
    broker=f"kafka://{BOOTSTRAP}",
    store="rocksdb://?driver=rocksdict",
    datadir=DATA_DIR,
    topic_partitions=2,
    topic_disable_leader=True,
    web_enabled=False,
)
events = app.topic(TOPIC, key_type=str, key_serializer="raw", value_type=bytes, value_serializer="raw")
plain = app.Table("windows", partitions=2)
windows = plain.tumbling(10.0, expires=86_400.0).relative_to_stream()
progress = {"seen": 0, "start": 0.0}
finished = asyncio.Event()
warmup, total = int(WARMUP), int(TOTAL)
number = struct.Struct(">d")


@app.agent(events)  # type: ignore[untyped-decorator]
async def aggregate(stream: faust.StreamT[bytes]) -> None:
    """Adds each reading to its device's window."""
    async for key, value in stream.items():
        (reading,) = number.unpack(value)
        entry = windows[key]
        try:
            count, total_value, least, most = entry.current()
            entry_value = [count + 1, total_value + reading, min(least, reading), max(most, reading)]
        except KeyError:
            entry_value = [1, reading, reading, reading]
        windows[key] = entry_value
        progress["seen"] += 1
        if progress["seen"] == warmup:
            progress["start"] = time.perf_counter()
        if progress["seen"] == total:
            await app.producer.flush()
            seconds = time.perf_counter() - progress["start"]
            sys.stdout.write(json.dumps({"events": total - warmup, "seconds": seconds}) + "\n")
            sys.stdout.flush()
            finished.set()


async def stop(worker: faust.Worker) -> None:
    """Stops the worker when the last event is in, or at the deadline."""
    try:
        await asyncio.wait_for(finished.wait(), float(DEADLINE))
    except TimeoutError:
        sys.stderr.write(f"only {progress['seen']} of {total} events were processed\n")
    await worker.stop()


async def main() -> None:
    """Runs the worker until the bench is over."""
    worker = faust.Worker(app, loglevel="WARN", quiet=True, loop=asyncio.get_running_loop(), redirect_stdouts=False)
    stopping = asyncio.create_task(stop(worker))
    await worker.start()
    await stopping


# Faust sets itself and aiokafka to log level debug and filters in the handler, which costs about a tenth of its time.
logging.disable(logging.INFO)
asyncio.run(main())
sys.exit(0 if finished.is_set() else 1)
