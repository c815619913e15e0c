"""What a benchmark prints keeps its contract, and what it sends has the size that it says."""

from __future__ import annotations

import json
import sys
from io import StringIO

import pytest
from rich.console import Console

from callboard.actors.bench import tui
from callboard.actors.bench.counter import encode, padded
from callboard.actors.bench.errors import ContenderFailed
from callboard.actors.bench.pty_program import pty_program
from callboard.actors.bench.report import Report
from callboard.schemas.bench import Add, Note, Piece
from callboard.tui.pages import PAGES


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


def test_a_program_in_a_terminal_is_heard_as_it_is_read_and_its_time_is_counted() -> None:
    busy = "import sys, time\nprint('\\x1b[1mhel\\x1b[0;3mlo', flush=True)\nwhile True: pass"
    with pty_program([sys.executable, "-c", busy], {}) as program:
        assert 0 < program.wait_for("hello", 60.0) < 60.0
        assert program.cpu_share(0.3) > 0.1
    with pty_program([sys.executable, "-c", "print('no such thing')"], {}) as program:
        with pytest.raises(ContenderFailed, match="'hello' did not come") as failed:
            program.wait_for("hello", 60.0)
        assert "no such thing" in failed.value.detail


def test_the_benchmark_of_the_terminal_ui_measures_every_page() -> None:
    assert tuple(PAGES) == tui.PAGES
