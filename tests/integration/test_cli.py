"""The command line as a process: what it prints where, its exit codes, and what it does not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

COMMANDS = """
import sys
from callboard.runtime.command import Command
from callboard.runtime.errors import CallboardError, ConfigError, NotReachable

def fail(error):
    def run(args):
        raise error
    return Command("fails", lambda parser: None, run)

def interrupted(args):
    raise KeyboardInterrupt

def chatter(args):
    for number in range(1_000_000):
        print(number)
    return 0

def loaded(args):
    print(*sorted(sys.modules))
    return 0

work = fail(CallboardError("it did not work", hint="try again"))
config = fail(ConfigError("bad key"))
away = fail(NotReachable("nobody there"))
grouped = fail(ExceptionGroup("tasks", [ExceptionGroup("inner", [NotReachable("nobody there")])]))
bug = fail(ZeroDivisionError("a bug"))
stopped = Command("is interrupted", lambda parser: None, interrupted)
chatty = Command("prints much", lambda parser: None, chatter)
modules = Command("lists modules", lambda parser: parser.add_argument("--flag"), loaded)
"""

NAMES = ("work", "config", "away", "grouped", "bug", "stopped", "chatty", "modules")


@pytest.fixture(autouse=True)
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    info = site / "antics-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "antics.py").write_text(COMMANDS)
    (site / "heavy.py").write_text("import antics\nimport textual_that_is_not_there\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: antics\nVersion: 1.0\n")
    lines = [f"t-{name} = antics:{name}" for name in NAMES]
    (info / "entry_points.txt").write_text("[callboard.commands]\n" + "\n".join(lines) + "\nt-broken = heavy:go\n")
    monkeypatch.setenv("PYTHONPATH", str(site))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "callboard.runtime.cli", *arguments], capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_help_lists_every_command_with_its_summary(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    for name in ("up", "status", "logs", "down"):
        assert f"\n  {name} " in done.stdout
    assert "t-work" in done.stdout
    assert "prints much" in done.stdout
    assert "textual_that_is_not_there" in done.stdout  # a command that cannot be loaded is in the list, with why


def test_help_imports_no_command_once_its_summary_is_known() -> None:
    run("--help")
    code = "import sys\nfrom callboard.runtime.cli import main\nmain(['--help'])\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    modules = done.stdout.splitlines()[-1].split()
    assert "callboard.runtime.cli" in modules
    for heavy in ("antics", "callboard.runtime.commands_daemon", "asyncio", "anyio", "nats", "msgspec", "torch"):
        assert heavy not in modules


def test_a_command_imports_itself_and_nothing_heavy() -> None:
    modules = run("t-modules").stdout.split()
    assert "antics" in modules
    for heavy in ("callboard.runtime.commands_daemon", "asyncio", "nats", "torch"):
        assert heavy not in modules


def test_help_of_a_command_names_its_options() -> None:
    done = run("t-modules", "--help")
    assert done.returncode == 0
    assert "--flag" in done.stdout
    assert "usage: callboard t-modules" in done.stdout


def test_version() -> None:
    import callboard

    assert run("--version").stdout == f"callboard {callboard.__version__}\n"


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("t-work", 1, "callboard: it did not work\n  try again\n"),
        ("t-config", 2, "callboard: bad key\n"),
        ("t-away", 3, "callboard: nobody there\n"),
        ("t-grouped", 3, "callboard: nobody there\n"),
        ("t-stopped", 130, ""),
    ],
)
def test_errors_are_one_line_a_hint_and_an_exit_code(name: str, code: int, words: str) -> None:
    done = run(name)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(words)
    assert "Traceback" not in done.stderr


def test_a_bug_shows_its_traceback() -> None:
    done = run("t-bug")
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr


@pytest.mark.parametrize(("typed", "meant"), [("stauts", "status"), ("upp", "up"), ("t-wrok", "t-work")])
def test_an_unknown_command_names_the_nearest_one(typed: str, meant: str) -> None:
    done = run(typed)
    assert done.returncode == 2
    assert f"there is no command '{typed}'" in done.stderr
    assert f"callboard {meant}" in done.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    assert run("--verbose").returncode == 2
    assert run("t-modules", "--unknown").returncode == 2


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "callboard.runtime.cli", "t-chatty"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 0
