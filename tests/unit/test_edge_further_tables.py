"""Two tables of one input at a gateway: each has its own position, and one that is behind holds up only its readers."""

from __future__ import annotations

import pytest

from streams.edge.options import TableSpec
from streams.edge.positions import Positions
from streams.model.errors import Timeout
from streams.model.marker import InputPosition, Marker
from streams.model.row import MergeType
from streams.model.token import Input, Token


async def test_each_table_of_an_input_has_its_own_position() -> None:
    positions = Positions(("us",))
    inputs = ("events.device",)
    names = ("device", "telemetry", "anomaly")
    positions.set_tables(TableSpec(name, "device", MergeType.OPAQUE, 1, inputs) for name in names)
    key = Input("us", "events.device", 0)
    for name, at in (("device", 9), ("telemetry", 4)):
        positions.advance(name, "us", Marker("commit", 1, 1, {"events.device/0": InputPosition(at, "id")}))
    assert positions.applied_by("device") == Token({key: 9})
    assert positions.applied_by("telemetry") == Token({key: 4})
    assert positions.applied_by("anomaly") == Token({})
    before = positions.applied_by("telemetry")
    assert positions.applied_by("telemetry") is before and before.merge(Token()) is Token().merge(before) is before
    assert Token.decode(before.encode()) == Token.decode(before.encode()) == before
    positions.advance("telemetry", "us", Marker("commit", 1, 2, {"events.device/0": InputPosition(5, "id")}))
    assert positions.applied_by("telemetry") == Token({key: 5}) and before == Token({key: 4})
    assert Token.decode(positions.applied_by("telemetry").encode()) == Token({key: 5})
    await positions.wait_for(Token({key: 9}), 0, "device")
    for behind in ("telemetry", "anomaly"):
        with pytest.raises(Timeout):
            await positions.wait_for(Token({key: 9}), 0.01, behind)
