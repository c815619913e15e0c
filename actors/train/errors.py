"""Errors of training, beside those of the runtime's tree.

TrainError                  train
├── Diverged                train.diverged      too many steps in a row had no finite loss or gradient
├── NoMemory                train.no_memory     the run does not fit; said before it begins where that can be known
├── CheckpointFailed        train.checkpoint    a checkpoint cannot be written or read
├── NoSuchJob               train.no_job
├── WrongState              train.state         a job that is not in a state for what is asked of it
└── ShardsLost              train.shards_lost   the group died too often without taking a step
"""

from __future__ import annotations

from ...runtime.errors import CallboardError


class TrainError(CallboardError):
    code = "train"


class Diverged(TrainError):
    code = "train.diverged"
    default_hint = "a lower `optimizer.lr`, a longer `optimizer.warmup`, or a look at the data may help"


class NoMemory(TrainError):
    code = "train.no_memory"
    default_hint = "a smaller `batch.micro_tokens`, `compute.checkpointing`, a higher `shards.zero` or LoRA take less"


class CheckpointFailed(TrainError):
    code = "train.checkpoint"
    default_hint = "make room on the disk; the last whole checkpoint stays"


class NoSuchJob(TrainError):
    code = "train.no_job"
    default_hint = "`callboard jobs` lists them"


class WrongState(TrainError):
    code = "train.state"
    default_hint = "`callboard jobs` says how each job stands"


class ShardsLost(TrainError):
    code = "train.shards_lost"
    default_hint = "`callboard logs` says why they died; `callboard resume` goes on from the last checkpoint"
