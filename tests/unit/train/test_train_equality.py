"""Training here is training there: ten steps of plain transformers and PEFT give the same losses and weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

from callboard.actors.data.dataset import load_data
from callboard.actors.data.options import DataOptions
from callboard.actors.train.group import alone
from callboard.actors.train.trainer import Trainer
from callboard.schemas.train import (
    BatchSettings,
    ComputeSettings,
    LoraSettings,
    Method,
    OptimizerSettings,
    Packing,
    TrainConfig,
    TrainEvent,
    TrainNote,
    TrainProgress,
)

CPU = torch.device("cpu")
# PEFT asks transformers in a way that is going to change.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def ours(config: TrainConfig, folder: Path) -> list[TrainProgress]:
    """The steps of a whole run, which leaves its result in `config.out`."""
    events: list[TrainEvent] = []
    trainer = Trainer.build(config, "job", folder, alone(CPU))
    trainer.run(events.append, lambda: None)
    return [event for event in events if isinstance(event, TrainProgress)]


def theirs(config: TrainConfig, model: Any) -> Iterator[float]:
    """Losses of a plain loop, one sample at a time, over the samples in our order."""
    options = DataOptions(max_tokens=config.batch.max_tokens)
    stream = load_data(config.data, Path(config.model), options, seed=config.seed).samples()
    settings = config.optimizer
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        eps=settings.eps,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, int(settings.warmup), config.steps)
    for _ in range(config.steps):
        samples: list[Any] = [next(stream) for _ in range(config.batch.samples)]
        count = sum(int(sample.loss_mask[1:].sum()) for sample in samples)
        total = 0.0
        for sample in samples:
            ids = torch.from_numpy(sample.token_ids.astype(np.int64))
            labels = ids.where(torch.from_numpy(sample.loss_mask.astype(bool)), -100)
            logits = model(input_ids=ids[None], use_cache=False).logits[0]
            loss = F.cross_entropy(logits[:-1].float(), labels[1:], reduction="sum") / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield total


def with_peft(config: TrainConfig, model: Any) -> Any:
    import peft

    torch.manual_seed(config.seed)
    lora = peft.LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,  # pyright: ignore[reportArgumentType]
        target_modules="all-linear",
        use_dora=config.lora.dora,
        use_rslora=config.lora.rslora,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, lora)


@pytest.mark.parametrize("lora", [LoraSettings(rank=4), LoraSettings(rank=4, rslora=True), LoraSettings(4, dora=True)])
def test_lora_is_peft(make_config: Callable[..., TrainConfig], lora: LoraSettings, tmp_path: Path) -> None:
    config = make_config(lora=lora)
    model = with_peft(config, AutoModelForCausalLM.from_pretrained(config.model))
    expected = list(theirs(config, model))
    steps = ours(config, tmp_path / "job")
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < 0.96 * expected[0]
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    state = get_peft_model_state_dict(model)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)


def test_full_is_transformers(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config = make_config(method=Method.FULL)
    model = AutoModelForCausalLM.from_pretrained(config.model)
    expected = list(theirs(config, model))
    steps = ours(config, tmp_path / "job")
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)
    written = AutoModelForCausalLM.from_pretrained(config.out)
    for (name, found), wanted in zip(written.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes")
def test_qlora_is_peft_over_bitsandbytes(make_config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    # Moments near zero make much of the rounding of a product, the more so the larger the steps are.
    optimizer = OptimizerSettings(lr=1e-3, warmup=2)
    config = make_config(method=Method.QLORA, lora=LoraSettings(rank=4), optimizer=optimizer)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(config.model, quantization_config=quantized, dtype=torch.float32)
    model = with_peft(config, model)
    expected = list(theirs(config, model))
    steps = ours(config, tmp_path / "job")
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", [Method.LORA, pytest.param(Method.FULL, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "batch",
    [
        BatchSettings(samples=8, max_tokens=128, micro_tokens=128, packing=Packing.PACKED),
        pytest.param(
            BatchSettings(samples=8, max_tokens=128, micro_tokens=10_000, packing=Packing.SORTED),
            marks=pytest.mark.slow,
        ),
        BatchSettings(samples=8, max_tokens=128, micro_tokens=300, packing=Packing.SORTED),
    ],
)
def test_however_samples_are_put_together_the_losses_are_the_same(
    make_config: Callable[..., TrainConfig], tmp_path: Path, method: Method, batch: BatchSettings
) -> None:
    alone_each = BatchSettings(samples=8, max_tokens=128, micro_tokens=1)
    expected = ours(make_config(method=method, batch=alone_each, out=str(tmp_path / "one")), tmp_path / "a")
    found = ours(make_config(method=method, batch=batch, out=str(tmp_path / "two")), tmp_path / "b")
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], rel=1e-5)
    assert [step.loss_tokens for step in found] == [step.loss_tokens for step in expected]


@pytest.mark.parametrize("how", [pytest.param("selective", marks=pytest.mark.slow), "full"])
@pytest.mark.parametrize("method", list(Method))
def test_what_is_computed_again_changes_nothing(
    make_config: Callable[..., TrainConfig], tmp_path: Path, how: str, method: Method
) -> None:
    plain = ours(make_config(method=method, steps=3, out=str(tmp_path / "one")), tmp_path / "a")
    again = ComputeSettings(precision="float32", device="cpu", checkpointing=how)
    found = ours(make_config(method=method, steps=3, compute=again, out=str(tmp_path / "two")), tmp_path / "b")
    assert [step.loss for step in found] == [step.loss for step in plain]


def test_what_became_of_samples_that_are_too_long_is_said(
    make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    batch = BatchSettings(samples=8, max_tokens=100, micro_tokens=256)
    events: list[TrainEvent] = []
    config = make_config(steps=1, batch=batch)
    Trainer.build(config, "job", tmp_path / "job", alone(CPU)).run(events.append, lambda: None)
    data = load_data(config.data, Path(config.model), DataOptions(max_tokens=100))
    notes = [event.text for event in events if isinstance(event, TrainNote)]
    assert data.counts().num_truncated > 0
    assert notes[0] == f"{data.counts().num_truncated} of 40 samples were cut off at 100 tokens"
