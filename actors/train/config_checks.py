"""Whether a configuration makes sense in itself: said before anything is loaded, in one line that names the setting."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from ...runtime.errors import ConfigError
from ...runtime.matching import did_you_mean
from ...schemas.train import Method, Packing, Task, TrainConfig

SCHEDULES = ("constant", "linear", "cosine", "wsd")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
CHECKPOINTING = ("none", "selective", "full")
TEMPLATES = ("", "chatml", "alpaca")
TOO_LONG = ("truncate", "drop", "split")

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_HOOK = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def check_config(config: TrainConfig) -> None:
    """Raises ConfigError for the first setting that is out of its range, or does not go with another."""
    for problem in _problems(config):
        raise ConfigError(problem)


def _problems(config: TrainConfig) -> Iterator[str]:
    for key in ("model", "data", "out"):
        if not getattr(config, key):
            yield f"{key} is empty"
    yield from _at_least("steps", config.steps, 0)
    if not config.steps:
        yield from _above("epochs", config.epochs, 0)
    if (config.trainable or config.frozen) and config.method is not Method.FULL:
        yield f"trainable and frozen are for the method full, and it is {config.method}"
    yield from _patterns("trainable", config.trainable)
    yield from _patterns("frozen", config.frozen)
    yield from _method(config)
    yield from _batch(config)
    yield from _optimizer(config)
    yield from _shards(config)
    yield from _watching(config)
    for number, hook in enumerate(config.hooks):
        if not _HOOK.fullmatch(hook.kind):
            yield f"hooks[{number}].kind = {hook.kind!r}: it is package.module:Class"
        if not _is_table(hook.options):
            yield f"hooks[{number}].options = {hook.options!r}: it is a JSON object"


def _method(config: TrainConfig) -> Iterator[str]:
    lora, preference = config.lora, config.preference
    yield from _at_least("lora.rank", lora.rank, 1)
    yield from _above("lora.alpha", lora.alpha, 0)
    yield from _share("lora.dropout", lora.dropout)
    if not lora.targets:
        yield "lora.targets is empty: name modules, or all-linear"
    yield from _patterns("lora.targets", lora.targets)
    yield from _above("preference.beta", preference.beta, 0)
    yield from _at_least("preference.margin", preference.margin, 0)
    yield from _at_least("preference.sft", preference.sft, 0)
    if not 0 <= preference.label_smoothing < 0.5:
        yield f"preference.label_smoothing = {preference.label_smoothing:g}: it is 0 or more, and below 0.5"


def _batch(config: TrainConfig) -> Iterator[str]:
    batch, shards = config.batch, config.shards
    yield from _at_least("batch.samples", batch.samples, 1)
    for key in ("max_tokens", "micro_tokens"):
        yield from _at_least(f"batch.{key}", getattr(batch, key), 0)
    if batch.max_tokens == 1:
        yield "batch.max_tokens = 1: nothing can be learned of one token; 0 is the model's context length"
    if 0 < batch.micro_tokens < batch.max_tokens:
        yield (
            f"batch.micro_tokens = {batch.micro_tokens}: a sample of batch.max_tokens = {batch.max_tokens} does not go "
            "through at once"
        )
    yield from _one_of("batch.too_long", batch.too_long, TOO_LONG)
    yield from _one_of("batch.template", batch.template, TEMPLATES)
    if shards.sequence_parallel >= 1 and batch.samples < shards.count // shards.sequence_parallel:
        yield f"batch.samples = {batch.samples}: fewer than shards.count = {shards.count} need to share"


def _optimizer(config: TrainConfig) -> Iterator[str]:
    optimizer = config.optimizer
    yield from _above("optimizer.lr", optimizer.lr, 0)
    yield from _one_of("optimizer.schedule", optimizer.schedule, SCHEDULES)
    yield from _at_least("optimizer.warmup", optimizer.warmup, 0)
    if not 0 <= optimizer.min_lr <= 1:
        yield f"optimizer.min_lr = {optimizer.min_lr:g}: it is a share of the rate, from 0 to 1"
    if not 0 < optimizer.decay <= 1:
        yield f"optimizer.decay = {optimizer.decay:g}: it is a share of all steps, above 0 and at most 1"
    for key in ("beta1", "beta2", "ema"):
        yield from _share(f"optimizer.{key}", getattr(optimizer, key))
    yield from _above("optimizer.eps", optimizer.eps, 0)
    for key in ("weight_decay", "max_grad_norm"):
        yield from _at_least(f"optimizer.{key}", getattr(optimizer, key), 0)
    yield from _one_of("optimizer.bits", optimizer.bits, (8, 32))
    if optimizer.stochastic_rounding and config.compute.precision in ("float32", "float16"):
        yield f"optimizer.stochastic_rounding is for bfloat16, and compute.precision is {config.compute.precision}"


def _shards(config: TrainConfig) -> Iterator[str]:
    shards, compute = config.shards, config.compute
    for key in ("count", "sequence_parallel", "min_count"):
        yield from _at_least(f"shards.{key}", getattr(shards, key), 1)
    yield from _one_of("shards.zero", shards.zero, (1, 2, 3))
    if shards.min_count > shards.count:
        yield f"shards.min_count = {shards.min_count}: more than shards.count = {shards.count}"
    if shards.sequence_parallel > 1 and config.task is not Task.SFT:
        yield f"shards.sequence_parallel = {shards.sequence_parallel}: only the task sft shares sequences"
    if shards.sequence_parallel > 1 and config.batch.packing is not Packing.PACKED:
        yield f"shards.sequence_parallel = {shards.sequence_parallel}: batch.packing has to be packed"
    if shards.sequence_parallel >= 1 and shards.count % shards.sequence_parallel:
        yield f"shards.count = {shards.count}: not a multiple of shards.sequence_parallel = {shards.sequence_parallel}"
    yield from _patterns("shards.labels", shards.labels)
    yield from _one_of("compute.precision", compute.precision, PRECISIONS)
    yield from _one_of("compute.checkpointing", compute.checkpointing, CHECKPOINTING)
    if not _DEVICE.fullmatch(compute.device):
        yield f"compute.device = {compute.device!r}: it is auto, cpu, cuda or cuda:N"
    yield from _at_least("compute.threads", compute.threads, 0)


def _watching(config: TrainConfig) -> Iterator[str]:
    evaluation, samples, guards = config.evaluation, config.samples, config.guards
    yield from _at_least("checkpoints.every", config.checkpoints.every, 0)
    yield from _at_least("checkpoints.keep", config.checkpoints.keep, 1)
    yield from _share("evaluation.share", evaluation.share)
    for key in ("every", "patience"):
        yield from _at_least(f"evaluation.{key}", getattr(evaluation, key), 0)
    yield from _at_least("evaluation.samples", evaluation.samples, 1)
    if evaluation.data and evaluation.share:
        yield "evaluation.data and evaluation.share are both set: give one"
    if evaluation.every and not (evaluation.data or evaluation.share):
        yield f"evaluation.every = {evaluation.every}: on what? set evaluation.data or evaluation.share"
    if evaluation.patience and not evaluation.every:
        yield f"evaluation.patience = {evaluation.patience}: nothing is evaluated unless evaluation.every is set"
    yield from _at_least("samples.every", samples.every, 0)
    yield from _at_least("samples.max_tokens", samples.max_tokens, 1)
    if samples.every and not samples.prompts:
        yield f"samples.every = {samples.every}: there are no samples.prompts to answer"
    if guards.spike and not guards.spike > 1:
        yield f"guards.spike = {guards.spike:g}: it is above 1, or 0 for not looked at"
    yield from _at_least("guards.max_skips", guards.max_skips, 1)


def _at_least(key: str, value: float, least: float) -> Iterator[str]:
    if not (value >= least and math.isfinite(value)):
        yield f"{key} = {value:g}: it is {least:g} or more"


def _above(key: str, value: float, bound: float) -> Iterator[str]:
    if not (value > bound and math.isfinite(value)):
        yield f"{key} = {value:g}: it is above {bound:g}"


def _share(key: str, value: float) -> Iterator[str]:
    if not 0 <= value < 1:
        yield f"{key} = {value:g}: it is 0 or more, and below 1"


def _one_of(key: str, value: object, known: tuple[object, ...]) -> Iterator[str]:
    if value not in known:
        guess = did_you_mean(str(value), map(str, known))
        options = ", ".join(str(one) or '""' for one in known)
        yield f"{key} = {value!r}: " + (f"did you mean {guess}?" if guess else f"it is one of {options}")


def _patterns(key: str, patterns: tuple[str, ...]) -> Iterator[str]:
    if any(not pattern.strip() for pattern in patterns):
        yield f"{key} holds an empty name"


def _is_table(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
