"""The command line on one state folder, with real processes, for the tests that need a daemon."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from callboard.runtime.daemon_info import OWNER, DaemonInfo, find_daemon
from callboard.runtime.folders import Paths
from callboard.runtime.processes import find_by_variable, wait_exit

COMMAND = [sys.executable, "-m", "callboard.runtime.cli"]


def with_compiled_kernels(cache: Path) -> Path:
    """`cache`, a folder of a test's own, with what is compiled in the one that all tests have (tests/conftest.py)."""
    compiled = (Path(os.environ["CALLBOARD_CACHE_DIR"]) / "native").resolve(strict=True)
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "native").exists():
        (cache / "native").symlink_to(compiled)
    return cache


@dataclass
class Board:
    """`environment` is added to that of the tests' own process. `cwd`: where commands are given, "" for here."""

    paths: Paths
    environment: dict[str, str] = field(default_factory=dict)
    cwd: str = ""
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    @classmethod
    def at(cls, base: Path, **environment: str) -> Board:
        """With folders of its own below `base`, for a fixture that outlives one test."""
        folders = {name: base / name for name in ("state", "data", "cache", "runtime")}
        named = {f"CALLBOARD_{name.upper()}_DIR": str(folder) for name, folder in folders.items()}
        paths = Paths(**folders).create()
        with_compiled_kernels(paths.cache)
        return cls(paths, {**named, **environment})

    def run(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.environment}
        return subprocess.run(
            [*COMMAND, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=50,
            env=environment,
            cwd=self.cwd or None,
        )

    def start(self, *arguments: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )
        self._started.append(process)
        return process

    def up(self) -> DaemonInfo:
        done = self.run("up", "--detach")
        assert done.returncode == 0, done.stderr
        return self.info()

    def info(self) -> DaemonInfo:
        info = find_daemon(self.paths)
        assert info is not None
        return info

    def processes(self) -> list[psutil.Process]:
        return find_by_variable(OWNER, str(self.paths.state))

    def server(self) -> psutil.Process:
        (server,) = (process for process in self.processes() if process.name() == "nats-server")
        return server

    def watch_log(self, name: str) -> LogWatch:
        return LogWatch(self.start("logs", name, "--follow", "-n", "1"))

    def close(self) -> None:
        if find_daemon(self.paths):
            self.run("down")
        for process in self._started:
            process.kill()
            process.communicate()
        for left in self.processes():
            left.kill()


@contextmanager
def running(base: Path, **environment: str) -> Iterator[Board]:
    """A board below `base` whose daemon runs until the end of the block."""
    board = Board.at(base, **environment)
    try:
        board.up()
        yield board
    finally:
        board.close()


class LogWatch:
    """Follows a log through `callboard logs -f`, so that a test can await what happens. Its last line is seen first."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.wait("")

    def wait(self, words: str) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if words in line:
                return
        raise AssertionError(f"the log ended without {words!r}")


def gone(processes: list[psutil.Process]) -> bool:
    return all(wait_exit(process, 20) for process in processes)


def install(site: Path, module: str, source: str, **kinds: str) -> Path:
    """Lay down a package as somebody else would install it, whose classes are announced as actor kinds."""
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(source)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    lines = "".join(f"{kind} = {module}:{name}\n" for kind, name in kinds.items())
    (info / "entry_points.txt").write_text(f"[callboard.actors]\n{lines}")
    return site


def install_antics(site: Path, **kinds: str) -> Path:
    """The package of antics.py; without `kinds` those that do no harm."""
    source = (Path(__file__).parent / "antics.py").read_text()
    return install(site, "antics", source, **kinds or {"narrow": "Narrow", "wide": "Wide", "fragile": "Fragile"})


def install_toolbox(site: Path, *others: str) -> Path:
    """The package of toolbox.py, announced as the tools `box`; `others`: more lines like `NAME = MODULE:ATTRIBUTE`."""
    install(site, "toolbox", (Path(__file__).parent / "toolbox.py").read_text())
    lines = "\n".join(["[callboard.tools]", "box = toolbox", *others])
    (site / "toolbox-1.0.dist-info" / "entry_points.txt").write_text(f"{lines}\n")
    return site
