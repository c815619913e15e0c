"""Checks of the machine and the installation: Python, extras, folders, disk, limits, clock, terminal."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .checks import Check, Finding, Surroundings, absent, failed, ok, warning

_OURS = "callboard"
_LEAST_PYTHON = (3, 11)

_GIB = 1 << 30
# Less than that and nats-server soon has no room for what it must sync, and a model does not fit either.
_LOW_DISK = 5 * _GIB
_NO_DISK = _GIB // 4

# An actor's process takes its parent four descriptors, a connection to nats-server one.
_FEW_FILES = 1024
_TOO_FEW_FILES = 256


def python(_: Surroundings) -> Iterator[Finding]:
    version = platform.python_version()
    if sys.version_info < _LEAST_PYTHON:
        yield failed("python", f"Python {version} is too old", "install Python 3.11 or later, and callboard with it")
    else:
        yield ok("python", f"{version} at {sys.executable}")


def system(_: Surroundings) -> Iterator[Finding]:
    text = f"{platform.system()} {platform.release()} on {platform.machine()}, {os.cpu_count()} CPUs"
    if sys.platform == "linux":
        yield ok("system", text)
    elif sys.platform == "darwin":
        yield warning("system", f"{text}: no CUDA and no code sandbox", "run those parts on Linux")
    else:
        yield failed("system", f"{text} is not supported", "on Windows, use WSL: wsl --install")


def package(_: Surroundings) -> Iterator[Finding]:
    """Ourselves, and what each extra asks for, from our own metadata: no list of it is kept here."""
    needed: dict[str, list[str]] = {}
    for requirement in importlib.metadata.requires(_OURS) or ():
        name, extra = re.match(r"[\w.-]+", requirement), re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name is None or name[0] == _OURS or (_for_other_system(requirement)):
            continue
        needed.setdefault(extra[1] if extra else "", []).append(name[0])
    lacking = [name for name in needed.pop("", []) if _version(name) is None]
    if lacking:
        yield failed("callboard", f"not installed: {', '.join(lacking)}", f"{_pip()} install --upgrade callboard")
    else:
        yield ok("callboard", f"{_version(_OURS)} with all that it needs")
    for extra, names in needed.items():
        if extra in ("dev", "all"):
            continue
        found = {name: _version(name) for name in names}
        missing = [name for name, version in found.items() if version is None]
        if missing:
            text = f"not installed: {', '.join(missing)}"
            yield absent(f"extra {extra}", text, f"{_pip()} install 'callboard[{extra}]'")
        else:
            yield ok(f"extra {extra}", ", ".join(f"{name} {version}" for name, version in found.items()))


def folders(given: Surroundings) -> Iterator[Finding]:
    paths = given.paths
    for name, folder in (("state", paths.state), ("data", paths.data), ("cache", paths.cache)):
        label = f"{name} folder"
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not os.access(there, os.W_OK | os.X_OK) or not there.is_dir():
            yield failed(
                label, f"{there} cannot be written", f"chmod u+rwx {there}, or set CALLBOARD_{name.upper()}_DIR"
            )
        elif there == folder and folder.stat().st_uid != os.getuid():
            yield failed(
                label, f"{folder} belongs to somebody else", f"set CALLBOARD_{name.upper()}_DIR to another one"
            )
        elif there == folder and name == "state" and stat.S_IMODE(folder.stat().st_mode) & 0o077:
            yield failed(label, f"others may look into {folder}, where the keys are", f"chmod 700 {folder}")
        else:
            yield ok(label, str(folder) + ("" if there == folder else " (not made yet)"))


def disk(given: Surroundings) -> Iterator[Finding]:
    seen: set[int] = set()
    for folder in (given.paths.state, given.paths.data):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if there.stat().st_dev in seen:
            continue
        seen.add(there.stat().st_dev)
        yield room(there, shutil.disk_usage(there).free)


def room(folder: Path, free: int) -> Finding:
    text = f"{free / _GIB:.1f} GiB free at {folder}"
    mend = "make room, or name folders on another disk: CALLBOARD_STATE_DIR, CALLBOARD_DATA_DIR"
    if free < _NO_DISK:
        return failed("disk", text, mend)
    return warning("disk", text, mend) if free < _LOW_DISK else ok("disk", text)


def open_files(_: Surroundings) -> Iterator[Finding]:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield files_limit(soft, hard)


def files_limit(soft: int, hard: int) -> Finding:
    """Of the shell that this runs in, which is what a daemon started from it gets."""
    if soft < 0 or soft >= _FEW_FILES:
        return ok("open files", "no limit" if soft < 0 else f"up to {soft}")
    reachable = hard < 0 or hard >= _FEW_FILES
    mend = f"ulimit -n {65536 if hard < 0 else hard}" if reachable else "raise the hard limit in limits.conf"
    text = f"only {soft} at a time"
    return failed("open files", text, mend) if soft < _TOO_FEW_FILES else warning("open files", text, mend)


def clock(given: Surroundings) -> Iterator[Finding]:
    """Credentials say when they were made: a clock that is far behind makes them void."""
    installed = Path(__file__).stat().st_mtime
    since = given.daemon.since if given.daemon is not None else 0.0
    latest = max(installed, since)
    now = time.time()
    stamp = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now))
    if now < latest - 1.0:
        text = f"{stamp} is before this was installed, or the daemon started"
        yield failed("clock", text, "timedatectl set-ntp true")
    else:
        yield ok("clock", stamp)


def terminal(_: Surroundings) -> Iterator[Finding]:
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding != "utf8":
        yield warning("terminal", f"writes {sys.stdout.encoding}, not UTF-8", "export LC_ALL=C.UTF-8")
    elif not sys.stdout.isatty():
        yield ok("terminal", "none (output goes elsewhere)")
    else:
        size = shutil.get_terminal_size()
        yield ok("terminal", f"{os.environ.get('TERM', 'unknown')}, {size.columns} by {size.lines}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _for_other_system(requirement: str) -> bool:
    found = re.search(r"sys_platform (==|!=) ['\"](\w+)['\"]", requirement)
    return found is not None and (found[2] == sys.platform) is not (found[1] == "==")


def _pip() -> str:
    return f"{sys.executable} -m pip"


MACHINE_CHECKS: tuple[Check, ...] = (python, system, package, folders, disk, open_files, clock, terminal)
