"""Two shards end where one does: every ZeRO stage, every method, and with sequences that they share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from trainer_jobs import run_together

from callboard.actors.train.group import alone
from callboard.actors.train.trainer import Trainer
from callboard.schemas.train import (
    EvaluationSettings,
    Method,
    OptimizerSettings,
    SampleSettings,
    ShardSettings,
    Task,
    TrainConfig,
    TrainEvent,
    TrainProgress,
)

if TYPE_CHECKING:
    from rank_processes import Ranks

pytestmark = pytest.mark.timeout(120)

Make = Callable[..., TrainConfig]
WATCHED = {
    "evaluation": EvaluationSettings(share=0.2, every=3),
    "samples": SampleSettings(prompts=("red tree",), every=3, max_tokens=4),
}


def run_alone(config: TrainConfig, folder: Path) -> list[TrainProgress]:
    events: list[TrainEvent] = []
    Trainer.build(config, "job", folder, alone(torch.device("cpu"))).run(events.append, lambda: None)
    return [event for event in events if isinstance(event, TrainProgress)]


def tensors_of(config: TrainConfig) -> dict[str, torch.Tensor]:
    name = "model" if config.method is Method.FULL else "adapter_model"
    return load_file(Path(config.out) / f"{name}.safetensors")


def compare(make_config: Make, ranks: Ranks, tmp_path: Path, shards: ShardSettings, **changes: Any) -> None:
    changes = {"steps": 6, **changes}
    one = make_config(out=str(tmp_path / "one"), **changes)
    two = make_config(out=str(tmp_path / "two"), shards=shards, **changes)
    expected = run_alone(one, tmp_path / "a")
    found, others = ranks.run(run_together, two, tmp_path / "b")
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=1e-5)
    assert [step.grad_norm for step in found] == pytest.approx([step.grad_norm for step in expected], rel=1e-4)
    assert others == []  # rank 0 alone has anything to say
    for name, tensor in tensors_of(one).items():
        torch.testing.assert_close(tensors_of(two)[name], tensor, rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("zero", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("method", [Method.LORA, Method.FULL, pytest.param(Method.QLORA, marks=pytest.mark.slow)])
def test_two_shards_end_where_one_does(
    make_config: Make, ranks: Ranks, tmp_path: Path, zero: int, method: Method
) -> None:
    compare(make_config, ranks, tmp_path, ShardSettings(count=2, zero=zero), method=method, **WATCHED)


# At the others' rate rewards are learned so fast that the last losses are nothing but rounding.
@pytest.mark.parametrize(("task", "lr"), [(Task.DPO, 5e-3), (Task.KTO, 5e-3), (Task.REWARD, 1e-3)])
def test_two_shards_share_pairs(
    make_config: Make, ranks: Ranks, tmp_path: Path, pairs: Path, task: Task, lr: float
) -> None:
    optimizer = OptimizerSettings(lr=lr, warmup=2)
    compare(
        make_config, ranks, tmp_path, ShardSettings(count=2, zero=1), task=task, data=str(pairs), optimizer=optimizer
    )


@pytest.mark.parametrize("zero", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_two_shards_share_sequences(make_config: Make, ranks: Ranks, tmp_path: Path, zero: int) -> None:
    shards = ShardSettings(count=2, zero=zero, sequence_parallel=2)
    compare(make_config, ranks, tmp_path, shards, method=Method.FULL, evaluation=EvaluationSettings(share=0.2, every=3))
