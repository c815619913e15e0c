"""What a benchmark prints keeps its contract, and what it sends has the size that it says."""

from __future__ import annotations

import json
from io import StringIO

import pytest
from rich.console import Console

from callboard.actors.bench.counter import encode, padded
from callboard.actors.bench.report import Report
from callboard.schemas.bench import Add, Note, Piece


def sample_report() -> Report:
    report = Report("demo", {"cores": 2})
    report.add("asks", [100.0, 300.0, 200.0], "asks/s")
    report.add_target("asks_over_bare", 0.8, "x", [0.7, 0.9, 0.95])
    report.add_target("start_s", 3, "s", [4.0], at_most=True)
    report.miss_target("on_a_gpu", 10, "x", "no GPU here")
    return report


def test_a_report_has_the_shape_that_scripts_rely_on() -> None:
    assert json.loads(sample_report().to_json()) == {
        "bench": "demo",
        "machine": {"cores": 2},
        "results": {
            "asks": {"value": 200, "unit": "asks/s", "low": 100, "high": 300},
            "asks_over_bare": {"value": 0.9, "unit": "x", "low": 0.7, "high": 0.95},
            "start_s": {"value": 4, "unit": "s", "low": 4, "high": 4},
        },
        "targets": {
            "asks_over_bare": {"value": 0.9, "goal": 0.8, "unit": "x", "met": True},
            "start_s": {"value": 4, "goal": 3, "unit": "s", "met": False},
            "on_a_gpu": {"value": None, "goal": 10, "unit": "x", "met": None, "why": "no GPU here"},
        },
    }


def test_the_table_says_what_the_json_says() -> None:
    output = StringIO()
    Console(file=output, width=120).print(*sample_report().tables(), sep="\n")
    lines = output.getvalue().splitlines()
    for words in (("asks", "200", "100", "300"), ("start_s", "4", "≤ 3", "no"), ("on_a_gpu", "-", "no GPU here")):
        assert any(all(word in line for word in words) for line in lines), words


def test_a_value_at_its_goal_meets_it() -> None:
    report = Report("demo", {})
    report.add_target("at_least", 2, "x", [2.0])
    report.add_target("at_most", 2, "x", [2.0], at_most=True)
    assert [target.met for target in report.targets.values()] == [True, True]


@pytest.mark.parametrize("message", [Add(), Note(), Piece(0)])
def test_a_padded_message_has_128_bytes(message: Add | Note | Piece) -> None:
    assert len(encode(padded(message))) == 128
