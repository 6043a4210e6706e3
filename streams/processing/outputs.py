"""What a UDF puts out besides rows: records of its output topics, in the transaction of the unit they belong to."""

from __future__ import annotations

from collections.abc import Sequence

from streams.model.errors import Conflict
from streams.processing.commit import Headers
from streams.processing.ports import Made, Output

SOURCE_HEADER = "source"


def output_headers(time_ms: int, region: str, input_key: str, position: int) -> Headers:
    """Headers of a unit's outputs: a clock and an origin like every event's, and how far the input was in.

    `source` is `topic/partition:next`; the clock is the unit's time, which replaying gives again.
    """
    return (
        ("hlc", b"%d" % (time_ms << 16)),
        ("origin", region.encode()),
        (SOURCE_HEADER, f"{input_key}:{position}".encode()),
    )


def outputs_of(made: Sequence[Made], topics: Sequence[str], headers: Headers) -> list[Output]:
    """The records of (index of the topic, key, value). Conflict when the table has no such topic."""
    plain = [each for each in made if not isinstance(each, Output)]
    if any(not 0 <= index < len(topics) for index in {index for index, _, _ in plain}):
        raise Conflict(
            f"the UDF writes to an output beyond its {len(topics)}",
            field="outputs",
            fix="name all its topics in udf.toml and in the table",
        )
    if len(plain) != len(made):
        return [each for each in made if isinstance(each, Output)]  # a map's: whole as they are
    return [Output(topics[index], None, key, value, headers) for index, key, value in plain]
