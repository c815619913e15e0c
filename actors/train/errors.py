"""Errors of training, and which of them a new attempt may get past.

TrainError                  train
├── NoSuchJob               train.none        no job of that name
├── WrongState              train.state       a job that is not where the request needs it to be
├── JobBusy                 train.busy        another process writes into the job's folder
├── ShardFailed             train.shard       the training loop raised what nobody foresaw
├── GroupReplaced           train.replaced    a later group of shards has the job: this one must end
├── NoRoom                  train.no_room     the disk is full
├── NotEnoughMemory         train.memory      the model, its optimizer or its activations do not fit
├── CheckpointFailed        train.checkpoint  it could not be written; earlier ones are as they were
│   └── CheckpointNoRoom    train.checkpoint_no_room  the disk is full
├── CheckpointDamaged       train.damaged     it cannot be read
├── CheckpointMismatch      train.mismatch    it is of another model or optimizer
├── Diverged                train.diverged    too many steps in a row had no finite loss or gradient
└── GaveUp                  train.gave_up     one attempt after the other got no further
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from ...runtime.errors import (
    ActorError,
    BlobError,
    BusError,
    CallboardError,
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    SlowConsumer,
    UnknownKind,
    VersionMismatch,
)


class TrainError(CallboardError):
    code = "train"


class NoSuchJob(TrainError):
    code = "train.none"
    default_hint = "`callboard jobs` lists those that are there"


class WrongState(TrainError):
    code = "train.state"
    default_hint = "`callboard jobs` shows how each stands"


class JobBusy(TrainError):
    code = "train.busy"
    default_hint = "a process of an earlier life ends by itself within seconds; else end the one that has it"


class ShardFailed(TrainError):
    code = "train.shard"
    default_hint = "`callboard logs` shows what each shard said"


class GroupReplaced(TrainError):
    code = "train.replaced"


class NoRoom(TrainError):
    code = "train.no_room"
    default_hint = "make room on the disk; `callboard resume` then goes on from the last checkpoint"


class NotEnoughMemory(TrainError):
    code = "train.memory"
    default_hint = (
        'smaller batch.micro_tokens, compute.checkpointing = "full", lora or qlora, or more shards with zero 3'
    )


class CheckpointFailed(TrainError):
    code = "train.checkpoint"


class CheckpointNoRoom(CheckpointFailed):
    code = "train.checkpoint_no_room"
    default_hint = "make room on the disk of the job's folder, or keep fewer checkpoints (checkpoints.keep)"


class CheckpointDamaged(TrainError):
    code = "train.damaged"
    default_hint = "resume from an earlier checkpoint of the job"


class CheckpointMismatch(TrainError):
    code = "train.mismatch"
    default_hint = "resume with the configuration that it was written with"


class Diverged(TrainError):
    code = "train.diverged"
    default_hint = "a lower `optimizer.lr`, a longer `optimizer.warmup`, or a look at the data may help"


class GaveUp(TrainError):
    code = "train.gave_up"


_PASSING = (ActorError, BlobError, BusError, Cancelled, DeadlineExceeded, JobBusy, ShardFailed, SlowConsumer)
_LASTING = (Forbidden, UnknownKind, VersionMismatch)
# Of errors that other folders define: tokenizing that broke off, a download.
_PASSING_CODES = ("data.failed", "model.pull")


def passes(error: CallboardError, *, has_checkpoint: bool) -> bool:
    """Whether a new group of shards may get past it: yes for what dies, no for what is wrong with data or settings.

    A full disk is somebody's to clear, and worth waiting for where there is a checkpoint to go on from.
    """
    if isinstance(error, NoRoom | CheckpointFailed):
        return has_checkpoint
    if error.to_info().code in _PASSING_CODES:
        return True
    return isinstance(error, _PASSING) and not isinstance(error, _LASTING)


@contextmanager
def typed() -> Iterator[None]:
    """Turns what nobody foresaw into an error with a code, which says whether trying again may help."""
    try:
        yield
    except CallboardError:
        raise
    except Exception as error:
        raise as_error(error) from error


def as_error(error: Exception) -> CallboardError:
    detail = "".join(traceback.format_exception(error))
    for cause in _causes(error):
        if isinstance(cause, CallboardError):
            return cause
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return NoRoom(f"the disk is full: {cause}", detail=detail)
        if isinstance(cause, MemoryError) or _is_out_of_memory(cause):
            return NotEnoughMemory(f"there is not enough memory: {cause}", detail=detail)
    return ShardFailed(f"{type(error).__name__}: {error}", detail=detail)


def _is_out_of_memory(error: BaseException) -> bool:
    """torch says so by a class on a card, and in words on a CPU."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
