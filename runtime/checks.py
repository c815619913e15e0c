"""What `callboard doctor` looks at: small functions, ours in a table here, those of capabilities as entry points.

A capability announces its own in the group `callboard.checks`, `gpu = "package.module:gpu"`: a function that takes
`Surroundings` and yields findings. It imports nothing heavy: all checks together have two seconds.
"""

from __future__ import annotations

import enum
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec

from .folders import Paths
from .settings import Settings

if TYPE_CHECKING:
    from .daemon_info import DaemonInfo

# What another program may take to answer.
PROGRAM_TIMEOUT_S = 1.5


class Verdict(enum.StrEnum):
    OK = "ok"
    ABSENT = "absent"
    """Something is not here that nothing of what is in use needs."""
    WARNING = "warning"
    """It works, and will not do so for long, or not for all."""
    FAILED = "failed"


class Finding(msgspec.Struct, frozen=True):
    """`mend` is the command, or what else to do, and is empty where there is nothing to."""

    name: str
    verdict: Verdict
    text: str
    mend: str = ""


class Surroundings(msgspec.Struct, frozen=True):
    """What is the same for all checks. `daemon` is None where none runs."""

    paths: Paths
    settings: Settings
    daemon: DaemonInfo | None


Check = Callable[[Surroundings], Iterable[Finding]]


def ok(name: str, text: str) -> Finding:
    return Finding(name, Verdict.OK, text)


def absent(name: str, text: str, mend: str = "") -> Finding:
    return Finding(name, Verdict.ABSENT, text, mend)


def warning(name: str, text: str, mend: str) -> Finding:
    return Finding(name, Verdict.WARNING, text, mend)


def failed(name: str, text: str, mend: str) -> Finding:
    return Finding(name, Verdict.FAILED, text, mend)


def ask_program(*command: str) -> str | None:
    """What a program prints, None where it fails or takes too long."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def examine(surroundings: Surroundings) -> list[Finding]:
    """Runs every check, ours first, then those that are announced, by name. They run at once: many wait for others."""
    from .checks_bus import BUS_CHECKS
    from .checks_machine import MACHINE_CHECKS
    from .registry import CHECKS, registry

    table: list[tuple[str, Callable[[], Check]]] = [
        (check.__name__, lambda check=check: check) for check in (*MACHINE_CHECKS, *BUS_CHECKS)
    ]
    table += [(name, entry.load) for name, entry in registry().entries(CHECKS).items()]

    def run(named: tuple[str, Callable[[], Check]]) -> list[Finding]:
        name, load = named
        try:
            return list(load()(surroundings))
        except Exception as error:  # a check is somebody's code, and the others are still wanted
            text = f"the check itself failed: {type(error).__name__}: {error}"
            return [failed(name, text, "report it to who announces that check")]

    with ThreadPoolExecutor(max_workers=8) as pool:
        return list(_flat(pool.map(run, table)))


def _flat(groups: Iterable[list[Finding]]) -> Iterator[Finding]:
    for group in groups:
        yield from group
