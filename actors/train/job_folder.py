"""A job on disk: all that a run needs to go on, whatever was killed.

    JOB/
        job.json                what is to be done
        wish.json               whether it is to run, pause or end, as the last one who asked said
        state.json              how it stands, and the number of its latest group of shards
        events.jsonl            what happened
        checkpoints/step-%08d   each there whole or not at all
        lock                    held by the one process that may write the last three

The actor `train` writes the wish, the job's coordinator its state, and rank 0 events and checkpoints. A new group
begins under the lock, which the kernel takes from a process only when it is gone: so an earlier rank 0 that still
lives cannot write into what a later one has.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from ...runtime.errors import ConfigError, NameTaken
from ...runtime.files import private_folder, write_private
from ...runtime.folders import Paths
from ...runtime.messages import UNDECODABLE
from ...schemas.base import ErrorInfo
from ...schemas.train import JobState, TrainCheckpointed, TrainConfig, TrainJob
from .errors import GroupReplaced, JobBusy, NoSuchJob
from .events import last_progress

T = TypeVar("T", bound=msgspec.Struct)

# Who is at work on a job, or will be.
ACTIVE = (JobState.STARTING, JobState.RUNNING)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_CHECKPOINT = re.compile(r"step-(\d{8,})")
# How often a lock is tried: nothing tells when its holder ends.
_LOCK_EVERY_S = 0.02


class Wish(enum.StrEnum):
    RUN = "run"
    PAUSE = "pause"
    CANCEL = "cancel"


class JobFile(msgspec.Struct, frozen=True):
    """What is written once. `created`: seconds since the epoch."""

    job: str
    created: float
    config: TrainConfig


class _WishFile(msgspec.Struct, frozen=True):
    wish: Wish = Wish.RUN


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """How a job stands. `attempt` counts its groups of shards, `stalls` those in a row that got no further than
    `furthest`, a step. `error`: what ended the last group, or the job."""

    state: JobState = JobState.STARTING
    num_steps: int = 0
    started: float = 0.0
    attempt: int = 0
    stalls: int = 0
    furthest: int = 0
    num_shards: int = 0
    error: ErrorInfo | None = None


class Checkpoint(msgspec.Struct, frozen=True):
    step: int
    path: Path


def jobs_folder() -> Path:
    return Paths.find().data / "train"


def checked_job_name(name: str) -> str:
    """Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for a job: use letters, digits, '-' and '_', at most 40")
    return name


class JobFolder:
    """Blocking, all of it: call it from a thread where that matters."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.events = path / "events.jsonl"
        self.checkpoints_folder = path / "checkpoints"

    @classmethod
    def create(cls, path: Path, config: TrainConfig, job: str = "") -> JobFolder:
        """A new job, there whole or not at all. Raises NameTaken where the folder is there already."""
        aside = path.with_name(f".{path.name}.new")
        shutil.rmtree(aside, ignore_errors=True)
        private_folder(aside / "checkpoints")
        _write(aside / "job.json", JobFile(job or path.name, time.time(), config))
        _write(aside / "state.json", Record(started=time.time()))
        try:
            os.rename(aside, path)
        except OSError as error:
            shutil.rmtree(aside, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise NameTaken(f"there is a job {path.name} already") from None
            raise
        _sync(path.parent)
        return cls(path)

    def job(self) -> JobFile:
        """Raises NoSuchJob, also where what is there cannot be read."""
        return self._read("job.json", JobFile)

    def _read(self, name: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode((self.path / name).read_bytes(), type=kind)
        except (FileNotFoundError, NotADirectoryError):
            raise NoSuchJob(f"there is no job {self.name}") from None
        except UNDECODABLE as error:
            raise NoSuchJob(f"{self.path / name} is damaged: {error}", hint="remove the folder") from error

    def record(self) -> Record:
        """Raises NoSuchJob, as `job` does."""
        return self._read("state.json", Record)

    def write_record(self, record: Record) -> None:
        _write(self.path / "state.json", record)

    def wish(self) -> Wish:
        try:
            return msgspec.json.decode((self.path / "wish.json").read_bytes(), type=_WishFile).wish
        except FileNotFoundError:
            return Wish.RUN

    def write_wish(self, wish: Wish) -> None:
        _write(self.path / "wish.json", _WishFile(wish))

    def status(self) -> TrainJob:
        job, record, latest = self.job(), self.record(), last_progress(self.events)
        return TrainJob(
            job=self.name,
            state=record.state,
            folder=str(self.path),
            out=job.config.out,
            model=job.config.model,
            data=job.config.data,
            step=0 if latest is None else latest.step,
            num_steps=record.num_steps,
            loss=(latest.loss if latest else None) or 0.0,
            started=record.started,
            error=record.error,
            ended=0.0 if record.state in ACTIVE else (self.path / "state.json").stat().st_mtime,
        )

    # Checkpoints

    def checkpoints(self) -> list[Checkpoint]:
        """The whole ones, the latest last."""
        found: list[Checkpoint] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.checkpoints_folder.iterdir():
                match = _CHECKPOINT.fullmatch(path.name)
                if match and path.is_dir():
                    found.append(Checkpoint(int(match[1]), path))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def last_checkpoint(self) -> Checkpoint | None:
        return next(reversed(self.checkpoints()), None)

    def set_aside_damaged(self) -> Checkpoint | None:
        """Where there is an earlier checkpoint to go on from, the last one no longer counts: returns that one."""
        *earlier, last = self.checkpoints() or [None]
        if last is None or not earlier:
            return None
        os.rename(last.path, last.path.with_name(f"{last.path.name}.damaged"))
        _sync(self.checkpoints_folder)
        return last

    def checkpointed(self, checkpoint: Checkpoint) -> TrainCheckpointed:
        return TrainCheckpointed(self.name, checkpoint.step, str(checkpoint.path), 0.0)

    # One writer

    @contextmanager
    def lock(self, patience_s: float) -> Iterator[None]:
        """Be the one that writes events and checkpoints, until the block ends or this process does.

        The lock is the process's own (POSIX), so that children which it forks do not keep it. Raises JobBusy where
        another process has it for longer than `patience_s`.
        """
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            until = time.monotonic() + patience_s
            while not _try_lock(descriptor):
                if time.monotonic() > until:
                    raise JobBusy(f"another process writes into {self.path}")
                time.sleep(_LOCK_EVERY_S)
            yield
        finally:
            os.close(descriptor)

    def check_attempt(self, attempt: int) -> None:
        """Raises GroupReplaced where a later group has begun, or the job is gone."""
        try:
            current = self.record().attempt
        except NoSuchJob as error:
            raise GroupReplaced(f"the job of this group is gone: {error}") from error
        if current != attempt:
            raise GroupReplaced(f"group {attempt} of job {self.name} was replaced by group {current}")


def all_jobs(root: Path) -> list[JobFolder]:
    """The folders that are jobs, the oldest first."""
    found: list[tuple[float, str, JobFolder]] = []
    with contextlib.suppress(FileNotFoundError):
        for path in root.iterdir():
            folder = JobFolder(path)
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(NoSuchJob):
                    found.append((folder.job().created, path.name, folder))
    return [folder for _, _, folder in sorted(found, key=lambda one: one[:2])]


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except PermissionError:  # what some systems say for the same
        return False
    return True


def _write(path: Path, value: msgspec.Struct) -> None:
    write_private(path, msgspec.json.format(msgspec.json.encode(value), indent=1))
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """A rename is on the disk once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
