"""An environment for a tool's requirements: a virtual environment of its own, made once and used again.

It is called after what goes into it: the requirements, the Python, this release of callboard and what it runs on. It
is made in its final place, since the scripts in it name that, and counts only when a mark in it says that it is whole:
what a killed process left half done is made anew. With `uv` if there is one, else by `venv` and pip. Where packages
come from is what the node's own settings of pip or uv say.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.abc
from anyio.streams.text import TextReceiveStream
from anyio.to_thread import run_sync

from ....runtime.log import log
from ....runtime.processes import whole
from ....schemas.tool_deploy import Manifest
from .bridge import Wanted, link, sort_out
from .errors import EnvironmentFailed
from .made_once import Kept, keep
from .versions import release_fits

INSTALL_TIMEOUT_S = 1800.0
_MARK = "whole"
_LINKS = "callboard-links"
# What is quoted of an installer that failed.
_LAST_LINES = 30
_CHECK = "import sys, callboard.runtime.worker; print(sys.version_info[:3])"


@dataclass(frozen=True)
class Environment:
    """A ready environment: its interpreter, its folder, and the hold on it."""

    python: Path
    folder: Path
    kept: Kept = field(compare=False)


def variables(folder: Path, source: Path | None = None) -> dict[str, str]:
    """What a process in the environment at `folder` is to be given: nothing of the node's own Python may leak in. It
    imports from `source` first."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {
        "VIRTUAL_ENV": str(folder),
        "PATH": path,
        "PYTHONPATH": "" if source is None else str(source),
        "PYTHONHOME": "",
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


async def environment_for(
    manifest: Manifest, content: Path, base: Path, *, timeout: float = INSTALL_TIMEOUT_S
) -> Environment:
    """The environment for an artifact whose files lie in `content`, below `base`, made if it is not there.

    Raises EnvironmentFailed, with the installer's last lines as its detail.
    """
    version = sys.version_info[:3]
    if not release_fits(manifest.python, version):
        raise EnvironmentFailed(
            f"{manifest.name} {manifest.version} runs on Python {manifest.python}, this node has {_dotted(version)}",
            hint="deploy it to a node with another Python, or widen its requires-python",
        )
    wanted = await run_sync(sort_out, manifest.requirements)
    folder = base / _key(wanted, manifest)
    python = folder / "bin" / "python"
    mark = folder / _MARK

    async def make() -> None:
        await run_sync(_clear, folder)
        await _make(folder, python, wanted, content)
        mark.write_text("\n".join(wanted.lines))

    try:
        with anyio.fail_after(timeout):
            return Environment(python, folder, await keep(folder, mark.exists, make))
    except TimeoutError:
        raise EnvironmentFailed(
            f"the requirements of {manifest.name} were not installed within {timeout:g} s",
            hint="`callboard logs` shows how far it came",
        ) from None


def _key(wanted: Wanted, manifest: Manifest) -> str:
    """Everything that makes two environments differ. A wheel that came along counts by its content."""
    digests = {f"./{file.path}": file.digest for file in manifest.files}
    parts = (
        sorted(f"{line} {digests.get(line, '')}" for line in wanted.lines),
        [(package.name, package.version, sorted(map(str, package.places.values()))) for package in wanted.linked],
        (sys.version, sys.base_prefix, sys.platform),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


async def _make(folder: Path, python: Path, wanted: Wanted, content: Path) -> None:
    uv = shutil.which("uv")
    log.info("making the environment %s for: %s", folder, ", ".join(wanted.lines) or "no requirements")
    if uv is not None:
        await _run("a virtual environment", [uv, "venv", "--no-project", "--python", sys.executable, str(folder)])
    else:
        await _run("a virtual environment", [sys.executable, "-m", "venv", "--without-pip", str(folder)])
    if wanted.lines:
        await _install(folder, python, wanted, content, uv)
    await run_sync(_link, folder, wanted)
    what = "a start of callboard in the new environment"
    await _run(what, [str(python), "-c", _CHECK], variables=variables(folder))


async def _install(folder: Path, python: Path, wanted: Wanted, content: Path, uv: str | None) -> None:
    lines = [(content / line[2:]).as_uri() if line.startswith("./") else line for line in wanted.lines]
    requirements, constraints = folder / "requirements.txt", folder / "constraints.txt"
    requirements.write_text("\n".join(lines) + "\n")
    constraints.write_text("\n".join(wanted.constraints) + "\n")
    files = ["-r", str(requirements), "-c", str(constraints)]
    if uv is not None:
        command = [uv, "pip", "install", "--no-progress", "--python", str(python), *files]
    else:
        command = [*await _pip(python), "install", "--no-input", "--progress-bar", "off", *files]
    await _run("the installation of " + ", ".join(wanted.lines), command)


async def _pip(python: Path) -> list[str]:
    """Pip for that interpreter: this installation's where it has one, since putting one there takes seconds."""
    import importlib.util

    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    await _run("pip", [str(python), "-m", "ensurepip"])
    return [str(python), "-m", "pip", "--disable-pip-version-check"]


def _link(folder: Path, wanted: Wanted) -> None:
    link(wanted.linked, folder / _LINKS)
    (site,) = (folder / "lib").glob("python3.*/site-packages")
    # What a .pth file names comes after the environment's own packages: these may be of other versions.
    (site / "callboard-links.pth").write_text(f"{folder / _LINKS}\n")


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


async def _run(what: str, command: Sequence[str], *, variables: dict[str, str] | None = None) -> None:
    """Run a program to its end; its output goes to the log. It goes with its children where this is cancelled."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    try:
        process = await whole(
            anyio.open_process(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**inherited, **(variables or {})},
                start_new_session=True,
            )
        )
    except OSError as error:
        raise EnvironmentFailed(f"{what} failed: {command[0]}: {error.strerror}") from error
    try:
        async for line in _lines(process):
            last.append(line)
            log.info("%s: %s", Path(command[0]).name, line)
        code = await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.aclose()
    if code != 0:
        why = next(
            (line for line in reversed(last) if "error" in line.lower()), last[-1] if last else f"exit code {code}"
        )
        raise EnvironmentFailed(
            f"{what} failed: {why}",
            hint="are the names right, and can this node reach a package index? `callboard logs` has all of it",
            detail="\n".join(last),
        )


async def _lines(process: anyio.abc.Process) -> AsyncIterator[str]:
    assert process.stdout is not None
    rest = ""
    async for text in TextReceiveStream(process.stdout, errors="replace"):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if line.strip():
                yield line.rstrip()
    if rest.strip():
        yield rest.rstrip()


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
