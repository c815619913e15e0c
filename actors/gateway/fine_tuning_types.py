"""What `/v1/fine_tuning/jobs` takes and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from .responses_types import Metadata

Auto = Literal["auto"]
Status = Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]


class Hyperparameters(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`beta` is of the method dpo."""

    n_epochs: Annotated[int, msgspec.Meta(ge=1, le=1000)] | Auto | None = None
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] | Auto | None = None
    learning_rate_multiplier: Annotated[float, msgspec.Meta(gt=0, le=1000)] | Auto | None = None
    beta: Annotated[float, msgspec.Meta(gt=0, le=100)] | Auto | None = None


class MethodSettings(msgspec.Struct, kw_only=True):
    hyperparameters: Hyperparameters | None = None


class MethodBody(msgspec.Struct, kw_only=True):
    """`reinforcement` is refused by its name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: MethodSettings | None = None
    dpo: MethodSettings | None = None


class JobBody(msgspec.Struct, kw_only=True):
    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: Hyperparameters | None = None
    method: MethodBody | None = None
    suffix: Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern="^[A-Za-z0-9_-]+$")] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, le=2147483647)] | None = None
    metadata: Metadata | None = None
    integrations: list[dict[str, Any]] | None = None


class Chosen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hyperparameters as they came to be."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    beta: float | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway writes down of a job; how it stands the actor `train` knows, under the same name.

    `base`: what is trained, as engines call it. `name`: what the result is called where models are named.
    """

    id: str
    created_at: int
    model: str
    base: str
    training_file: str
    validation_file: str | None
    method: Literal["supervised", "dpo"]
    chosen: Chosen
    seed: int
    metadata: dict[str, str]
    name: str
    out: str


class JobError(msgspec.Struct, frozen=True):
    code: str
    message: str
    param: str | None = None


class FineTuningJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job as OpenAI's API describes it; `paused` is a status too. Times are seconds since 1970."""

    id: str
    created_at: int
    model: str
    status: Status
    training_file: str
    validation_file: str | None
    hyperparameters: Chosen
    method: dict[str, Any]
    seed: int
    metadata: dict[str, str]
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    organization_id: str = "callboard"
    fine_tuned_model: str | None = None
    finished_at: int | None = None
    estimated_finish: int | None = None
    trained_tokens: int | None = None
    result_files: list[str] = []
    integrations: list[dict[str, Any]] = []
    error: JobError | None = None


class JobEvent(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] = {}
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"


class JobCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: dict[str, float]
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
