"""Checkpoints: folders that are whole or not there, written beside the training.

NAME.partial/              until all ranks have written; then rank 0 gives it its name
    checkpoint.json        how many ranks wrote it, and what the trainer adds: step, position in the data
    .metadata, __R_0.distcp   the state, by torch.distributed.checkpoint: what is where, and each rank's part
    rank-R.rng             each rank's random numbers

All of it is synced to the disk before it gets its name. A checkpoint that is given up is first renamed back, so what
has no `.partial` in its name is whole whenever the machine stops.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from . import dcp_files
from .errors import CheckpointDamaged, CheckpointFailed, CheckpointMismatch, CheckpointNoRoom
from .group import Group
from .sharded import ShardedModel

PARTIAL = ".partial"
ABOUT = "checkpoint.json"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class About(msgspec.Struct, frozen=True):
    num_ranks: int
    extra: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """`rank_state`: this rank's, None where another number of ranks has written."""

    extra: dict[str, Any]
    rank_state: bytes | None


class PendingSave:
    """A checkpoint that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0
        self._done = threading.Event()
        self._error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether `wait` returns at once. Ranks may see it a moment apart."""
        return self._done.is_set()

    def wait(self) -> None:
        """Return when the folder is whole. Raises CheckpointFailed, on all ranks or none."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def _end(self, seconds: float, error: Exception | None) -> None:
        self.seconds, self._error = seconds, error
        self._done.set()


class CheckpointWriter:
    """Writes one at a time, each in a thread: what is to be saved is copied first. All ranks save the same."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._last: PendingSave | None = None

    def save(self, folder: Path, sharded: ShardedModel, extra: dict[str, Any], rank_state: bytes) -> PendingSave:
        """Begin to write `folder`; `extra` is the same on every rank, `rank_state` this rank's random numbers.

        Waits for the one before, whose error is for whoever waits for that one.
        """
        if self._last is not None:
            self._last._done.wait()
        pending = self._last = PendingSave(folder)
        state = dcp_files.copy_of(sharded.state_dict(), self._group)
        about = msgspec.json.encode(About(self._group.world_size, extra))
        # A daemon: where the process is to end, a checkpoint that nobody waits for does not hold it up.
        threading.Thread(
            target=self._write, args=(pending, state, about, rank_state), name=f"save-{folder.name}", daemon=True
        ).start()
        return pending

    def _write(self, pending: PendingSave, state: dict[str, Any], about: bytes, rank_state: bytes) -> None:
        begun = time.monotonic()
        error: Exception | None = None
        try:
            _write_folder(pending.folder, self._group, state, about, rank_state)
        except CheckpointFailed as failure:
            error = failure
        except Exception as failure:  # of the group: a rank is gone
            error = CheckpointFailed(f"the checkpoint {pending.folder} could not be written: {failure}")
            error.__cause__ = failure
        pending._end(time.monotonic() - begun, error)


def load(folder: Path, sharded: ShardedModel) -> Loaded:
    """Go on from `folder`, by whatever number of ranks and at whatever ZeRO stage it was written.

    Raises CheckpointDamaged, CheckpointMismatch.
    """
    group = sharded.group
    try:
        about = msgspec.json.decode((folder / ABOUT).read_bytes(), type=About)
        state = sharded.state_dict(about.num_ranks)
        dcp_files.read(state, folder)
        rank_state = (folder / _rng_name(group.rank)).read_bytes() if about.num_ranks == group.world_size else None
    except KeyError as error:
        raise CheckpointMismatch(f"{folder} has no {error.args[0]}, which this run has") from error
    except Exception as error:
        if isinstance(error, ValueError) and "Size mismatch" in str(error):
            raise CheckpointMismatch(f"{folder} is of a model of another shape: {error}") from error
        raise CheckpointDamaged(f"{folder} cannot be read: {error}") from error
    sharded.load_state_dict(state, about.num_ranks)
    return Loaded(about.extra, rank_state)


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole ones, the oldest first: their names sort as they follow each other."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.endswith(PARTIAL))


def discard(folder: Path) -> None:
    """Give a checkpoint up; at no moment does a part of it look like a whole one."""
    partial = _partial(folder)
    shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(partial)
        shutil.rmtree(partial)


def prune(folder: Path, keep: int, spared: Collection[str] = ()) -> None:
    """Keep the last `keep` checkpoints (at least one), and those whose names are `spared`."""
    for path in checkpoints_in(folder)[: -max(keep, 1)]:
        if path.name not in spared:
            discard(path)


def remove_leftovers(folder: Path) -> None:
    """What a process that was killed has left half written. For who alone writes here, before it does."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.endswith(PARTIAL):
                shutil.rmtree(path)


def _write_folder(folder: Path, group: Group, state: dict[str, Any], about: bytes, rank_state: bytes) -> None:
    partial = _partial(folder)

    def begin() -> None:
        if group.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    def fill() -> None:
        dcp_files.write(state, partial, group)
        _write_synced(partial / _rng_name(group.rank), rank_state)
        if group.rank == 0:
            _write_synced(partial / ABOUT, about)

    def finish() -> None:
        if group.rank != 0:
            return
        _sync(partial)
        aside = folder.with_name(f"{folder.name}.old{PARTIAL}")
        if folder.exists():  # written by a run that went on from before it
            folder.rename(aside)
        partial.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)

    try:
        for part in (begin, fill, finish):
            _all_or_none(part, folder, group)
    except CheckpointFailed:
        if group.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)  # its room is needed
        raise


def _all_or_none(part: Callable[[], None], folder: Path, group: Group) -> None:
    """Do `part` on every rank, and raise on all of them what one has met."""
    error: Exception | None = None
    try:
        part()
    except Exception as failure:
        error = failure
    told = None if error is None else (_is_no_room(error), f"rank {group.rank}: {_root(error)}")
    failures = [each for each in dcp_files.gather(told, group) if each is not None]
    if failures:
        no_room, text = max(failures)  # a full disk explains the rest
        kind = CheckpointNoRoom if no_room else CheckpointFailed
        raise kind(f"the checkpoint {folder} could not be written: {text}") from error


def _root(error: BaseException) -> BaseException:
    """What was met first: torch's writer fails once more, with other words, when it closes what it could not write."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return error


def _is_no_room(error: BaseException) -> bool:
    root = _root(error)
    return isinstance(root, OSError) and root.errno in NO_ROOM


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + PARTIAL)


def _rng_name(rank: int) -> str:
    return f"rank-{rank}.rng"


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
