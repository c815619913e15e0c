"""Preference losses against their formulas over plain transformers; tasks learn what they are for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from callboard.actors.data.dataset import load_data
from callboard.actors.data.options import DataOptions
from callboard.actors.data.tokenized import Pair, Sequence
from callboard.actors.train.group import alone
from callboard.actors.train.trainer import Trainer
from callboard.runtime.errors import ConfigError
from callboard.schemas.train import (
    BatchSettings,
    Method,
    PreferenceSettings,
    Task,
    TrainConfig,
    TrainEvent,
    TrainProgress,
)

CPU = torch.device("cpu")
# PEFT asks transformers in a way that is going to change.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
PREFERENCE = PreferenceSettings(beta=0.3, margin=0.4, label_smoothing=0.1, sft=0.2)
Make = Callable[..., TrainConfig]


def logp(model: Any, sequence: Sequence) -> tuple[torch.Tensor, int]:
    """The log-probability of a sequence's tokens with loss, and how many these are."""
    ids = torch.from_numpy(sequence.token_ids.astype(np.int64))
    mask = torch.from_numpy(sequence.loss_mask[1:].astype(bool))
    logps = model(input_ids=ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
    return logps.gather(1, ids[1:, None])[mask].sum(), int(mask.sum())


def formula(task: Task, s: PreferenceSettings, model: Any, reference: Any, pairs: list[Pair]) -> float:
    """Each paper's loss, as a mean over pairs."""
    rows = []
    for pair in pairs:
        (c, nc), (r, nr) = logp(model, pair.chosen), logp(model, pair.rejected)
        rc, rr = logp(reference, pair.chosen)[0], logp(reference, pair.rejected)[0]
        rows.append([c / nc, r / nr, c, r, rc, rr])
    mean_c, mean_r, c, r, rc, rr = torch.tensor(rows, dtype=torch.float64).unbind(1)
    if task is Task.DPO:
        logits = s.beta * ((c - rc) - (r - rr))
        losses = -(1 - s.label_smoothing) * F.logsigmoid(logits) - s.label_smoothing * F.logsigmoid(-logits)
        losses = losses - s.sft * mean_c
    elif task is Task.ORPO:
        odds = (mean_c - mean_r) - (torch.log1p(-mean_c.exp()) - torch.log1p(-mean_r.exp()))
        losses = -mean_c - s.beta * F.logsigmoid(odds)
    elif task is Task.SIMPO:
        losses = -F.logsigmoid(s.beta * (mean_c - mean_r) - s.beta * s.margin) - s.sft * mean_c
    else:
        origin_c, origin_r = (c - rc).mean().clamp(min=0), (r - rr).mean().clamp(min=0)
        chosen = 1 - torch.sigmoid(s.beta * ((c - rc) - origin_r))
        rejected = 1 - torch.sigmoid(s.beta * (origin_c - (r - rr)))
        losses = (chosen + rejected) / 2
    return float(losses.mean())


def run(config: TrainConfig, folder: Path) -> list[TrainProgress]:
    events: list[TrainEvent] = []
    Trainer.build(config, "job", folder, alone(CPU)).run(events.append, lambda: None)
    return [event for event in events if isinstance(event, TrainProgress)]


@pytest.mark.parametrize("method", [pytest.param(Method.LORA, marks=pytest.mark.slow), Method.FULL])
@pytest.mark.parametrize("task", [Task.DPO, Task.ORPO, Task.SIMPO, Task.KTO])
def test_a_preference_loss_is_its_paper_s(
    make_config: Make, pairs: Path, tmp_path: Path, task: Task, method: Method
) -> None:
    """Of the step that follows three others, so that the model is no longer the reference."""
    data: Any = load_data(str(pairs), Path(make_config().model), DataOptions(max_tokens=128), seed=0)
    stream = data.samples()
    for _ in range(3 * 6):
        next(stream)
    fourth = [next(stream) for _ in range(6)]
    settings = {"data": str(pairs), "task": task, "preference": PREFERENCE, "method": method}
    batch = BatchSettings(samples=6, max_tokens=128, micro_tokens=100)
    # A schedule that does not end: the rates of the first steps are the same however many there are.
    optimizer = make_config().optimizer.__class__(lr=2e-3, warmup=0, schedule="constant")
    common = {**settings, "batch": batch, "optimizer": optimizer}
    run(make_config(**common, steps=3, out=str(tmp_path / "three")), tmp_path / "a")
    steps = run(make_config(**common, steps=4, out=str(tmp_path / "four")), tmp_path / "b")
    reference = AutoModelForCausalLM.from_pretrained(make_config().model)
    if method is Method.FULL:
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "three")
    else:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(make_config().model)
        model = PeftModel.from_pretrained(base, str(tmp_path / "three"))
    with torch.no_grad():
        expected = formula(task, PREFERENCE, model, reference, fourth)
    assert steps[3].loss == pytest.approx(expected, rel=1e-4)
    assert {"accuracy", "margin"} >= {name for name, value in steps[3].metrics if math.isnan(value)}


@pytest.mark.slow
@pytest.mark.parametrize("task", [Task.DPO, Task.ORPO, Task.SIMPO, Task.KTO, Task.REWARD])
def test_what_was_chosen_comes_to_be_preferred(make_config: Make, pairs: Path, tmp_path: Path, task: Task) -> None:
    optimizer = make_config().optimizer.__class__(lr=1e-2, warmup=2)
    config = make_config(
        data=str(pairs), task=task, method=Method.FULL, steps=25, optimizer=optimizer, preference=PreferenceSettings()
    )
    steps = run(config, tmp_path / "job")
    assert dict(steps[-1].metrics)["accuracy"] == 1.0
    assert (steps[-1].loss or 0.0) < 0.8 * (steps[0].loss or 0.0)


@pytest.mark.parametrize("method", [Method.LORA, Method.FULL])
def test_a_reward_model_is_read_by_transformers_with_the_same_scores(
    make_config: Make, pairs: Path, tmp_path: Path, method: Method
) -> None:
    config = make_config(data=str(pairs), task=Task.REWARD, method=method, steps=5)
    trainer = Trainer.build(config, "job", tmp_path / "job", alone(CPU))
    trainer.run(lambda event: None, lambda: None)
    if method is Method.FULL:
        model = AutoModelForSequenceClassification.from_pretrained(config.out)
    else:
        from peft import AutoPeftModelForSequenceClassification

        model = AutoPeftModelForSequenceClassification.from_pretrained(config.out, num_labels=1)
    data: Any = load_data(str(pairs), Path(config.model), DataOptions(max_tokens=128), seed=0)
    sample = next(data.samples()).chosen
    ids = torch.from_numpy(sample.token_ids.astype(np.int64))[None]
    from callboard.actors.train.attention import packed as packed_attention
    from callboard.actors.train.batches import packed

    batch = packed([sample])
    with torch.no_grad(), packed_attention(batch.cu_seqlens):
        model.config.pad_token_id = None
        torch.testing.assert_close(model(input_ids=ids).logits[:, 0], trainer.module.eval()(batch))


def test_data_of_the_wrong_kind_is_refused(make_config: Make, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has none"):
        Trainer.build(make_config(task=Task.DPO), "job", tmp_path, alone(CPU))
    with pytest.raises(ConfigError, match="has preferences"):
        Trainer.build(make_config(data=str(pairs)), "job", tmp_path, alone(CPU))
