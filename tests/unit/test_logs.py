"""`callboard logs`: the last lines, and then every line that is added, once, across the turning over of a file."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.commands_logs import Tail
from callboard.runtime.logfiles import NUM_OLD, LineLog


def test_the_last_lines_and_then_what_is_added(tmp_path: Path) -> None:
    path = tmp_path / "daemon.log"
    path.write_text("".join(f"line {number}\n" for number in range(100)))
    tail = Tail(path)
    assert tail.last(3) == ["line 97", "line 98", "line 99"]
    assert tail.new() == []
    with path.open("a") as file:
        file.write("more\nand mo")
    assert tail.new() == ["more"]
    with path.open("a") as file:
        file.write("re\n")
    assert tail.new() == ["and more"]


def test_a_half_written_line_is_shown_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("whole\nha")
    tail = Tail(path)
    assert tail.last(10) == ["whole"]
    path.write_text("whole\nhalf\n")
    assert tail.new() == ["half"]


def test_a_file_that_is_not_there_yet_has_no_lines(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "later.log")
    assert tail.last(5) == []
    assert tail.new() == []
    (tmp_path / "later.log").write_text("now\n")
    assert tail.new() == ["now"]


def test_no_line_is_lost_or_shown_twice_when_the_file_turns_over(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\n")
    tail = Tail(path)
    assert tail.last(1) == ["one"]
    with path.open("a") as file:
        file.write("two\n")
    path.rename(tmp_path / "a.log.1")
    path.write_text("three\n")
    assert tail.new() == ["two", "three"]
    assert tail.new() == []


@given(lines=st.lists(st.text(alphabet="abc ", max_size=200), max_size=60), count=st.integers(0, 70))
def test_the_last_lines_are_those_of_the_whole_file(lines: list[str], count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.log"
        path.write_text("".join(f"{line}\n" for line in lines))
        assert Tail(path).last(count) == (lines[-count:] if count else [])


def test_a_long_file_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("".join(f"{number:0100d}\n" for number in range(5000)))
    assert [int(line) for line in Tail(path).last(1500)] == list(range(3500, 5000))


def test_another_process_s_log_stays_bounded(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.log"
    log = LineLog(path, max_bytes=200)
    for number in range(200):
        log.write(f"line {number}")
    log.close()
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["a.log", *(f"a.log.{index + 1}" for index in range(NUM_OLD))]
    assert all(file.stat().st_size <= 200 for file in files)
    assert path.read_text().endswith("line 199\n")
