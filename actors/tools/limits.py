"""Limits of a tool's process: one that fills memory or forks without end takes itself along, and not the machine.

Two locks, since neither holds alone. The kernel fails an allocation beyond `memory` in one process (RLIMIT_DATA: memory
that is writable and its own, touched or not). And a thread looks now and then at the process and all that it started
and that stayed in its session: their memory together, and how many they are. What is over a limit is ended. Should
processes grow faster than the thread gets its turn, the kernel stops them far above (RLIMIT_NPROC, which counts all
threads of a person on the machine, so it cannot be the limit itself; root is exempt).

These are for accidents. Code that means harm can leave the session; it belongs into the sandbox (sandbox/).
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psutil

from ...runtime.errors import ConfigError
from ...runtime.log import log
from ...runtime.sizes import format_size, parse_size
from .errors import ToolOverLimit

# Of the settings of a set of tools: the table with its process's limits.
TABLE = "process"
MIB = 1 << 20
# Of the machine's memory, where nothing is said.
SHARE = 0.75
LOOK_EVERY_S = 0.05
# A look at all processes costs milliseconds, so it is taken so often, or when there are many more than there were.
LOOK_AT_ALL_EVERY_S = 1.0
# Of one person beyond those that there were and those that may be: nothing but a bomb.
MANY_PROCESSES = 2048
# A set with no call in hand may still have left something behind.
IDLE_EVERY_S = 5.0


class ProcessLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`memory`: bytes of the process and what it starts, 0 for three quarters of the machine's. `processes`: how many
    it may have started that still are there."""

    memory: Annotated[int, msgspec.Meta(ge=0)] = 0
    processes: Annotated[int, msgspec.Meta(ge=1)] = 256

    @property
    def bytes(self) -> int:
        return self.memory or int(SHARE * psutil.virtual_memory().total)


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    memory: int | str = 0
    processes: int = 256


def limits_of(memory: int | str = 0, processes: int = 256) -> ProcessLimits:
    """`memory` as people write it. Raises ConfigError."""
    size = memory if isinstance(memory, int) else parse_size(memory)
    if 0 < size < 64 * MIB:
        raise ConfigError(f"{format_size(size)} are too little for a tool's process", hint="a set needs 64MiB and more")
    try:
        return msgspec.convert({"memory": size, "processes": processes}, ProcessLimits)
    except msgspec.ValidationError as error:
        raise ConfigError(f"these are no limits of a tool's process: {error}") from error


def split_limits(name: str, options: Mapping[str, Any]) -> tuple[ProcessLimits, dict[str, Any]]:
    """Limits of a set's process, and the options that are left for the set itself. Raises ConfigError."""
    own = {key: value for key, value in options.items() if key != TABLE}
    try:
        written = msgspec.convert(options.get(TABLE, {}), _Written)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[tools.{name}.{TABLE}] is not right: {error}") from error
    return limits_of(written.memory, written.processes), own


def hold(limits: ProcessLimits) -> None:
    """From here on the kernel holds this process and what it starts, as far as it can. POSIX only."""
    try:
        import resource
    except ImportError:
        return
    _lower(resource.RLIMIT_DATA, limits.bytes)
    _lower(resource.RLIMIT_NPROC, _threads_of_user() + limits.processes + MANY_PROCESSES)


def _lower(which: int, wanted: int) -> None:
    import resource

    _, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(which, (wanted, wanted))


def _threads_of_user() -> int:
    own, count = os.getuid(), 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.uids().real == own:
                count += process.num_threads()
    return count


class Overseer:
    """Looks at the process and what it started, in a thread, until `end`. `is_busy`: whether a call is in hand.

    Over a limit, what the process started is killed, and `over` is called in the thread, once.
    """

    def __init__(
        self, limits: ProcessLimits, is_busy: Callable[[], bool], over: Callable[[ToolOverLimit], None]
    ) -> None:
        self._limits = limits
        self._is_busy = is_busy
        self._over = over
        self._ended = threading.Event()
        threading.Thread(target=self._watch, name="overseer", daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        looked_after, before = 0.0, _tasks_of_machine()
        while not self._ended.wait(LOOK_EVERY_S):
            looked_after += LOOK_EVERY_S
            tasks = _tasks_of_machine()
            many_more = tasks - before > self._limits.processes // 2
            if looked_after < (LOOK_AT_ALL_EVERY_S if self._is_busy() else IDLE_EVERY_S) and not many_more:
                continue
            looked_after, before = 0.0, tasks
            if (error := self._look()) is not None:
                log.error("%s", error)
                end_all_of_session()
                self._over(error)
                return

    def _look(self) -> ToolOverLimit | None:
        others = list(of_session())
        if len(others) > self._limits.processes:
            return ToolOverLimit(
                f"the tool's process had {len(others)} processes of its own, and may have {self._limits.processes}",
                hint="do with fewer at once",
            )
        pids = [os.getpid(), *others]
        if sum(map(_resident, pids)) > self._limits.bytes and (held := sum(map(_held, pids))) > self._limits.bytes:
            return ToolOverLimit(
                f"the tool's processes held {format_size(held)}, and may have {format_size(self._limits.bytes)}",
                hint="work on less at once",
            )
        return None


def of_session() -> Iterator[int]:
    """The processes of this one's session but itself: what it started, and what those did."""
    session, own = os.getsid(0), os.getpid()
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid != own and os.getsid(pid) == session:
                yield pid


def end_all_of_session() -> None:
    """Stopped first, so that none can start another while the others go."""
    while found := [pid for pid in of_session() if not _is_gone(pid)]:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in found:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return True


def _tasks_of_machine() -> int:
    """Threads on the whole machine, which is cheap to ask; 0 where it is not told."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    except (OSError, ValueError, IndexError):
        return 0


def _resident(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.Error:
        return 0


def _held(pid: int) -> int:
    """With pages that several share counted once among them, where the system tells."""
    try:
        info = psutil.Process(pid).memory_full_info()
        return getattr(info, "pss", info.rss)
    except psutil.Error:
        return 0
