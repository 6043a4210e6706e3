"""The bench's answer has the contract's shape, its verdicts are right, and its command line says what is wrong."""

from __future__ import annotations

import json

import pytest
from rich.console import Console
from typer.testing import CliRunner

from streams.bench import command
from streams.bench.counters import CountersOptions, Samples, _results
from streams.bench.report import Report, Result, at_least, at_most
from streams.bench.statistics import median, percentile
from streams.model.errors import BadInput, StreamsError


def test_a_percentile_is_a_sample_by_nearest_rank() -> None:
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [percentile(samples, percent) for percent in (1, 20, 50, 99, 100)] == [1.0, 1.0, 3.0, 5.0, 5.0]
    assert median([1.0, 2.0, 10.0]) == 2.0


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentiles_of_nothing_are_refused(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError):
        percentile(samples, percent)


def test_a_report_is_the_contracts_json() -> None:
    result = Result("speed", 300.0, "events/s", {"faust": 2.0, "kafka-streams": 100.0}, ">= 50x faust", True)
    body = json.loads(json.dumps(Report("counters", [result]).to_dict()))
    assert set(body) == {"bench", "machine", "results"}
    assert body["results"] == [
        {
            "what": "speed",
            "value": 300.0,
            "unit": "events/s",
            "peers": {"faust": 2.0, "kafka-streams": 100.0},
            "ratio": {"faust": 150.0, "kafka-streams": 3.0},
            "goal": ">= 50x faust",
            "met": True,
        }
    ]
    assert body["machine"]["cores"] >= 1


def test_a_report_shows_peers_with_ratios() -> None:
    console = Console(record=True, width=200)
    Report("counters", [Result("speed", 3000.0, "events/s", {"faust": 20.0})]).show(console)
    assert "150×" in console.export_text()


def test_verdicts_follow_the_limits() -> None:
    assert at_most("latency", 4.9, "ms", 5).met is True
    assert at_most("latency", 5.0, "ms", 5).met is False
    assert at_most("latency", 5.0, "ms").goal is None
    assert at_least("restore", 300_000, "rows/s", 300_000).met is True


def samples(**speeds: float) -> dict[str, Samples]:
    return {name.replace("_", "-"): Samples([speed], [1.0]) for name, speed in speeds.items()}


@pytest.mark.parametrize(
    ("ours", "met"), [({"streams": 200.0}, True), ({"streams": 199.0}, False), ({}, None)], ids=str
)
def test_the_headline_is_met_only_when_every_peer_is_beaten_enough(ours: dict[str, float], met: bool | None) -> None:
    speeds = samples(kafka_streams_eos_v2=100.0, faust=4.0, **ours)
    headline = _results(speeds, CountersOptions())[0]
    assert (headline.value, headline.met) == (ours.get("streams"), met)
    assert headline.peers == {"kafka-streams-eos-v2": 100.0, "faust": 4.0}


@pytest.mark.parametrize("wrong", [{"events": 10}, {"rounds": 0}, {"contenders": ("flink",)}], ids=str)
def test_options_that_measure_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        CountersOptions(**wrong)  # type: ignore[arg-type]


def test_json_and_nothing_else_is_on_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(_: command.Request, say: command.Say) -> list[Result]:
        say("working")
        return [Result("speed", 1.0, "events/s")]

    monkeypatch.setattr(command, "BENCHES", {"counters": bench})
    run = CliRunner().invoke(command.app, ["counters", "--json"])
    assert run.exit_code == 0
    assert json.loads(run.stdout)["bench"] == "counters"
    assert "working" in run.stderr


def test_failures_are_one_line_and_a_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(_: command.Request, __: command.Say) -> list[Result]:
        raise StreamsError("faust counted wrong")

    monkeypatch.setattr(command, "BENCHES", {"counters": bench})
    for arguments in (["counters", "--json"], ["nonsense"], ["counters", "--events", "3"]):
        run = CliRunner().invoke(command.app, arguments)
        assert (run.exit_code, run.stdout) == (1, "")
        assert run.stderr.startswith("streams bench: ") and run.stderr.count("\n") == 1
