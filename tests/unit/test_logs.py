"""`callboard logs`: the last lines, and then every line that is added, once, across the turning over of a file."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.log_lines import LogLine, Wanted, plain, read_line
from callboard.runtime.log_tail import Tail
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


def test_no_line_is_lost_when_the_file_turns_over_twice_between_two_looks(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LineLog(path, max_bytes=40)
    log.write("line 0")
    tail = Tail(path)
    assert tail.last(1) == ["line 0"]
    for number in range(1, 12):  # five lines a file
        log.write(f"line {number}")
    log.close()
    assert tail.new() == [f"line {number}" for number in range(1, 12)]
    assert tail.new() == []
    assert Tail(path).all() == [f"line {number}" for number in range(12)]


OWN = """
import os, sys
from pathlib import Path
from callboard.runtime.log import log
from callboard.runtime.log_lines import LogLine, Wanted, plain, read_line
from callboard.runtime.logfiles import log_to_file
own = log_to_file(Path(sys.argv[1]), "n", "info", int(sys.argv[2]))
for number in range(60):
    log.info("line %d", number)
    print("printed", number)
    os.write(1, b"native %d\\n" % number)
try:
    raise ValueError("no such thing")
except ValueError as error:
    log.error("failed", exc_info=error)
own.look()
log.info("%d", "no number")  # a mistake of the caller's
log.info("after")
os.abort()
"""


def test_a_process_turns_its_own_log_over_with_all_that_it_prints(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "n.log"
    done = subprocess.run([sys.executable, "-c", OWN, str(path), "8000"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert path.with_name("n.log.1").exists()
    assert all(file.stat().st_size < 9000 for file in path.parent.iterdir())
    lines = [read_line(text) for text in Tail(path).all()]
    for start in ("line", "printed", "native"):
        numbers = [line.message for line in lines if line.message.startswith(start)]
        assert numbers == [f"{start} {number}" for number in range(60)]
    by_message = {line.message: line for line in lines}
    assert (by_message["line 1"].level, by_message["line 1"].node) == ("info", "n")
    assert by_message["printed 1"].logger == "stdout"
    assert by_message["native 1"].time == ""
    error = by_message["failed"].error
    assert error is not None
    assert (error.type, error.message) == ("ValueError", "no such thing")
    assert "Traceback" in error.traceback
    assert "1 lines before this one could not be written" in by_message
    assert lines[-1].message == "after"


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    code = OWN.replace("os.abort()", "sys.exit(7)")
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n{code}"
    path = tmp_path / "n.log"
    done = subprocess.run(
        [sys.executable, "-c", limited.replace('os.write(1, b"native %d\\n" % number)', ""), str(path), "100000"],
        capture_output=True,
    )
    assert done.returncode == 7
    assert path.stat().st_size <= 3000


def test_lines_are_sifted_by_actor_level_time_and_trace() -> None:
    now = datetime(2026, 1, 31, 12, tzinfo=UTC)
    line = LogLine("x", now.isoformat(timespec="microseconds"), "warning", "main", "a.b", "12ab")
    time = line.time
    for wanted, has in (
        (Wanted(), True),
        (Wanted("a"), True),
        (Wanted("a.b"), True),
        (Wanted("a.bc"), False),
        (Wanted(level="warning"), True),
        (Wanted(level="error"), False),
        (Wanted(since=now), True),
        (Wanted(since=now.replace(hour=13)), False),
        (Wanted(trace="12"), True),
        (Wanted(trace="2"), False),
    ):
        assert wanted.has(line, "daemon", time) is has
    last_words = LogLine("Segmentation fault")
    assert Wanted("engine", "error").has(last_words, "engine", time)
    assert not Wanted("other").has(last_words, "engine", time)


def test_nats_servers_lines_and_foreign_json_are_read() -> None:
    line = read_line("[12] 2026/01/31 12:00:00.123456 [WRN] Slow consumer")
    assert (line.level, line.message, line.time != "") == ("warning", "Slow consumer", True)
    assert read_line('{"a": 1}').message == '{"a": 1}'
    assert plain(read_line("anything")) == "anything"
