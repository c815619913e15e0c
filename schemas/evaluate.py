"""A model is evaluated: the whole work as a request, what is heard meanwhile, the report, and each sample behind it."""

from __future__ import annotations

import msgspec

from .base import Message, Request, StreamRequest

# The kind that evaluates.
EVALUATE_KIND = "evaluate.run"


# Metrics that are shares of the samples; the others are numbers of their own kind.
SHARES = frozenset({"acc", "acc_norm", "exact_match", "f1"})


class MetricValue(msgspec.Struct, frozen=True):
    """`error`: the standard error of `value`; None where a single sample gives none."""

    name: str
    value: float
    error: float | None = None


class SampleScore(msgspec.Struct, frozen=True):
    """What a sample adds to a metric: that is the sum of all `value` over the sum of all `weight`, or e to the power of
    it."""

    metric: str
    value: float
    weight: float = 1.0


class LeftOut(msgspec.Struct, frozen=True):
    """A sample that no metric counts. `model`: the one that could not be asked, "" where none was."""

    line: int
    reason: str
    model: str = ""


class ModelEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What a model came to. `id`: of its record. `digest`: of its files. `dtype`: how weights are
    kept; `kv_cache`, `compute_dtype` as in `ModelDescription`. `resumed`: samples that an earlier run had done.
    `cut_short`: answers that ended at their greatest length. `finished`: seconds since 1970."""

    id: str
    model: str
    digest: str
    dtype: str
    context_length: int
    metrics: tuple[MetricValue, ...]
    samples: int
    compute_dtype: str = ""
    kv_cache: str = ""
    resumed: int = 0
    cut_short: int = 0
    seconds: float = 0.0
    finished: float = 0.0


class MetricDifference(msgspec.Struct, frozen=True, kw_only=True):
    """How much larger a metric is for `model` than for the first of the report, on the same samples. `low`, `high`: the
    95% interval, None of a single sample. `p_value`: McNemar's exact one, where a sample is right or wrong."""

    model: str
    metric: str
    difference: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None


class EvaluationReport(Message, frozen=True, kw_only=True, tag="evaluate.report"):
    """Models on the same samples: `samples` that all of them were asked and that count. `left_out`: the first of the
    `num_left_out` others."""

    task: str
    data: str
    data_sha256: str
    shots: int
    shots_from: str
    limit: int
    seed: int
    chat: bool
    max_tokens: int
    samples: int
    num_left_out: int
    left_out: tuple[LeftOut, ...]
    models: tuple[ModelEvaluation, ...]
    differences: tuple[MetricDifference, ...] = ()


class EvaluateProgress(Message, frozen=True, tag="evaluate.progress"):
    """`stage`: "reading", "starting" (an engine), "asking"; `done` of `total` samples of `model`."""

    model: str
    stage: str
    done: int = 0
    total: int = 0


class Evaluate(StreamRequest[EvaluateProgress, EvaluationReport], frozen=True, kw_only=True, tag="evaluate.run"):
    """Ask every one of `models` the samples of the file `data`, on the machine of the actor that is asked.

    `task`: a name of docs/evaluation.md, "" for what the file's content says. `shots`: examples before each question,
    drawn by `seed` from the file `shots_from`. `limit`: samples, drawn by `seed`; 0 for all. `chat`: through chat
    templates. `max_tokens`: of an answer, 0 for the task's own. Models are named as for an engine; one that nobody
    serves is served for this alone, with the engine's options `engine` (JSON). Samples that an interrupted run of the
    same had done are not asked again, and a finished one is shown; `again`: all of it anew.
    """

    models: tuple[str, ...]
    data: str
    task: str = ""
    shots: int = 0
    shots_from: str = ""
    limit: int = 0
    seed: int = 0
    chat: bool = False
    max_tokens: int = 0
    engine: str = "{}"
    again: bool = False


class EvaluationSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A record that is kept: one model on one task. `done` of `total` samples; `finished` 0: it can go on."""

    id: str
    model: str
    task: str
    data: str
    done: int
    total: int
    metrics: tuple[MetricValue, ...] = ()
    shots: int = 0
    chat: bool = False
    started: float = 0.0
    finished: float = 0.0


class Evaluations(Message, frozen=True, tag="evaluate.listing"):
    """The newest first. `trouble`: records that cannot be read, and why."""

    evaluations: tuple[EvaluationSummary, ...]
    trouble: tuple[str, ...] = ()


class ListEvaluations(Request[Evaluations], frozen=True, tag="evaluate.list"):
    """Ask which records are kept."""


class ShowEvaluation(Request[EvaluationReport], frozen=True, tag="evaluate.show"):
    """Ask for the report of a finished record, by its id or the beginning of it."""

    id: str


class EvaluatedSample(Message, frozen=True, kw_only=True, tag="evaluate.sample"):
    """A sample and what came of it; a line of a record's file of samples.

    `index`: its place among the samples of the data, `line`: where it stands in the file. `prompt`: without the
    examples before it. `choices` with their log-likelihoods `logprobs`, or `answers` of which any is right. `said`: the
    answer, or the choice taken. `is_right`: None where there is no right and wrong. `left_out`: why it does not count.
    """

    index: int
    line: int
    prompt: str
    choices: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    said: str = ""
    logprobs: tuple[float, ...] = ()
    scores: tuple[SampleScore, ...] = ()
    is_right: bool | None = None
    cut_short: bool = False
    left_out: str = ""


class SamplesSent(Message, frozen=True, tag="evaluate.samples_sent"):
    samples: int


class EvaluationSamples(StreamRequest[EvaluatedSample, SamplesSent], frozen=True, tag="evaluate.samples"):
    """Ask for the samples of a record in their order; `wrong`: those alone that were answered wrongly."""

    id: str
    wrong: bool = False


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True):
    """A finished record, as a result of its model beside others. `questions`: the same for all models that were asked
    the same."""

    id: str
    task: str
    data: str
    questions: str
    metrics: tuple[MetricValue, ...]
    samples: int
    num_left_out: int = 0
    shots: int = 0
    chat: bool = False
    finished: float = 0.0
