"""What is said about models: those that are installed, how far a pull is, and what the store is asked to do."""

from __future__ import annotations

import enum

import msgspec

from .base import ErrorInfo, Message, Request
from .evaluate import EvaluationResult
from .quantize import QuantizeReport

# The kind that keeps the store of a machine, and the address where the company's is.
STORE_KIND = "models.store"
STORE = "models"


class PullStage(enum.StrEnum):
    DOWNLOAD = "download"
    UNPACK = "unpack"


class PullProgress(msgspec.Struct, frozen=True):
    """How far a stage of a pull is, in bytes. A model that is there already is one finished download."""

    stage: PullStage
    done: int
    total: int


class ModelFile(msgspec.Struct, frozen=True):
    """One file of a model: its name in the store, size in bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class InstalledModel(msgspec.Struct, frozen=True):
    """A model in the store, as its manifest says. `files[0]` is the one that is loaded."""

    name: str
    description: str
    license: str
    source: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


class StoreWork(enum.StrEnum):
    PULL = "pull"
    QUANTIZE = "quantize"


class StoreJobState(enum.StrEnum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class StoreJob(Message, frozen=True, kw_only=True, tag="models.job"):
    """A pull or a quantization: `model` becomes `name` in the store. `stage` is done in `done` of `total` of its steps
    (bytes of a pull, layers of a quantization). Times in seconds since 1970; `ended` 0 while it runs."""

    job: int
    work: StoreWork
    model: str
    name: str
    state: StoreJobState = StoreJobState.RUNNING
    stage: str = ""
    done: int = 0
    total: int = 0
    started: float = 0.0
    ended: float = 0.0
    error: ErrorInfo | None = None
    report: QuantizeReport | None = None


class KnownName(msgspec.Struct, frozen=True):
    """A model that can be pulled by its name alone. `size`: bytes on the disk then."""

    name: str
    description: str
    license: str
    size: int


class StoreListing(Message, frozen=True, kw_only=True, tag="models.listing"):
    """What a machine's store at `root` holds, what could be pulled by name, and its jobs, the newest first (those that
    ended as far back as they are remembered). `free_bytes`: on the disk that it is on."""

    root: str
    models: tuple[InstalledModel, ...]
    known: tuple[KnownName, ...] = ()
    jobs: tuple[StoreJob, ...] = ()
    free_bytes: int = 0


class ListStore(Request[StoreListing], frozen=True, tag="models.list"):
    """Ask what is in the store."""


class PullModel(Request[StoreJob], frozen=True, tag="models.pull"):
    """Have a model fetched, as `callboard pull` does; answered at once with the job, also where one of the same model
    is under way. NoSuchModel for a name that cannot be one."""

    model: str
    force: bool = False


class QuantizeModel(Request[StoreJob], frozen=True, kw_only=True, tag="models.quantize"):
    """Have a model of the store quantized into a new one of the store; answered at once with the job.

    `name`: of the new one, "" for the old one's with method and bits behind it. The other fields as in `Quantize`;
    `method` "": gptq for 4 bits, smooth for 8. `group_size` 0: the largest of the usual ones that fits.
    """

    model: str
    name: str = ""
    method: str = ""
    bits: int = 4
    group_size: int = 0
    samples: int = 64
    length: int = 512


class CancelStoreJob(Request[StoreJob], frozen=True, tag="models.cancel"):
    """End a job. What it has done so far stays, and the same work goes on with it when it is asked for again."""

    job: int


class FineTuneResults(msgspec.Struct, frozen=True, kw_only=True):
    """What a fine-tune came to. `training_loss`: over its last stretch; `evaluation_loss`: the lowest, of
    `evaluated_on` samples that were held out; None where there was none. `samples`, `tokens`: that it learned from."""

    base: str
    task: str
    method: str
    steps: int
    training_loss: float | None = None
    evaluation_loss: float | None = None
    samples: int = 0
    evaluated_on: int = 0
    tokens: int = 0


class ModelResults(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model's quality. `size`: its files, in bytes. `quantized`: without `errors`. `evaluations`:
    the finished ones, the oldest first. `trouble`: which results are there and cannot be read, and why."""

    model: str
    size: int = 0
    quantized: QuantizeReport | None = None
    fine_tuned: FineTuneResults | None = None
    trouble: str = ""
    evaluations: tuple[EvaluationResult, ...] = ()


class StoreComparison(Message, frozen=True, tag="models.comparison"):
    """One for each model that was asked for, in that order."""

    results: tuple[ModelResults, ...]


class CompareModels(Request[StoreComparison], frozen=True, tag="models.compare"):
    """Ask for the results of some models side by side: names of the store, or folders of models and adapters on its
    machine. NoSuchModel for what is neither."""

    models: tuple[str, ...]
