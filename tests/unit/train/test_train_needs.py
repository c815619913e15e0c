"""What a run takes is known before it runs, and is what it takes then."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from shard_jobs import CPU
from torch import nn

from callboard.actors.train.errors import NotEnoughMemory
from callboard.actors.train.group import alone
from callboard.actors.train.memory import Sizes
from callboard.actors.train.needs import Plan, is_trained, sizes_of
from callboard.actors.train.sharding import shard_model
from callboard.kernels.nf4 import Nf4Weight
from callboard.schemas.train import (
    BatchSettings,
    ComputeSettings,
    LoraSettings,
    Method,
    OptimizerSettings,
    ShardSettings,
    TrainConfig,
)

GB = 1e9
LINEARS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]


def config_of(method: Method = Method.FULL, **settings: Any) -> TrainConfig:
    return TrainConfig(model="", data="", out="", method=method, **settings)


def llama(hidden: int = 64, *, layers: int = 2, vocab: int = 100, device: str = "cpu") -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab,
                hidden_size=hidden,
                intermediate_size=hidden * 3,
                num_hidden_layers=layers,
                num_attention_heads=max(1, hidden // 32),
                num_key_value_heads=max(1, hidden // 64),
                tie_word_embeddings=False,
            )
        )


@pytest.fixture(scope="module")
def seven_billion() -> nn.Module:
    return llama(4096, layers=32, vocab=32000, device="meta")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"trainable": ("*.layers.1.*",), "frozen": ("*norm*",)}], ids=["all", "part"])
def test_a_model_on_paper_has_the_sizes_of_the_real_one(dtype: torch.dtype, settings: dict[str, Any]) -> None:
    config = config_of(**settings)
    real = nn.Module.to(llama(), dtype)
    for name, param in real.named_parameters():
        param.requires_grad_(is_trained(name, config))
    buffers = sum(buffer.nbytes for buffer in real.buffers())
    sizes = Sizes.of(real)
    on_paper = sizes_of(llama(device="meta"), config, dtype)
    assert (on_paper.num_short, on_paper.num_wide) == (sizes.num_short, sizes.num_wide)
    assert on_paper.frozen_bytes == sizes.frozen_bytes - buffers
    assert sizes.num_trained > 0


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "down_proj")])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_on_paper_has_the_size_of_the_real_one(targets: tuple[str, ...], dora: bool) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraSettings(rank=3, targets=targets, dora=dora)
    names = LINEARS if targets == ("all-linear",) else list(targets)
    adapted = inject_adapter_in_model(LoraConfig(r=3, target_modules=names, use_dora=dora), llama())
    num_trained = sum(param.numel() for param in adapted.parameters() if param.requires_grad)
    assert sizes_of(llama(device="meta"), config_of(Method.LORA, lora=settings), torch.float32).num_wide == num_trained


def test_four_bits_on_paper_are_four_bits() -> None:
    model = llama()
    linears = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not model.lm_head]
    kept = sum(Nf4Weight.from_float(part.weight.detach()).nbytes for part in linears)
    rest = sum(param.numel() for param in model.parameters()) - sum(part.weight.numel() for part in linears)
    on_paper = sizes_of(llama(device="meta"), config_of(Method.QLORA), torch.bfloat16).frozen_bytes
    assert on_paper == pytest.approx(kept + 2 * rest, rel=1e-2)  # an odd block at a matrix's end, and its offset


@pytest.mark.parametrize("method", [Method.FULL, Method.LORA])
def test_the_state_on_paper_is_the_state_that_is_kept(method: Method) -> None:
    model, config = llama(256), config_of(method)
    plan = Plan(llama(256, device="meta"), config, 1, torch.float32, "cpu")
    if method == Method.LORA:
        from peft import LoraConfig, inject_adapter_in_model

        model = inject_adapter_in_model(LoraConfig(r=16, target_modules=LINEARS), model)
    sharded = shard_model(model, alone(CPU), config)
    torch.stack([param.sum() for param in model.parameters() if param.requires_grad]).sum().backward()
    sharded.finish_gradients()
    assert plan.needs(1).state.total == pytest.approx(sharded.memory().total, rel=0.05)


@pytest.mark.parametrize("method", [Method.FULL, Method.LORA])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_on_paper_are_those_that_transformers_keeps(method: Method, dtype: torch.dtype) -> None:
    num_tokens = 256
    model = nn.Module.to(llama(256, layers=4), dtype)
    if method == Method.LORA:
        from peft import LoraConfig, inject_adapter_in_model

        model.requires_grad_(False)
        model = inject_adapter_in_model(LoraConfig(r=8, target_modules=LINEARS), model)
    weights = {param.untyped_storage().data_ptr() for param in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.get_submodule("model")(input_ids=torch.zeros(1, num_tokens, dtype=torch.long), use_cache=False)
        plan = Plan(llama(256, layers=4, device="meta"), config_of(method), 1, dtype, "cpu")
        expected = plan.needs(num_tokens).activations
    assert hidden.last_hidden_state.shape == (1, num_tokens, 256)
    assert sum(storage.nbytes() for storage in kept.values()) == pytest.approx(expected, rel=0.25)


def test_more_tokens_need_more_and_the_most_fit(seven_billion: nn.Module) -> None:
    plan = Plan(seven_billion, config_of(Method.QLORA), 1, torch.bfloat16, "cuda")
    most = plan.largest_micro_tokens(24 * GB)
    assert plan.needs(most).total <= 24 * GB < plan.needs(most + 1).total
    assert plan.largest_micro_tokens(1 * GB) == 0
    full = Plan(
        seven_billion, config_of(Method.QLORA, compute=ComputeSettings(checkpointing="full")), 1, torch.bfloat16, "cuda"
    )
    assert full.largest_micro_tokens(24 * GB) > 3 * most
    # The weights in four bits, embeddings in 16, an adapter: what is known of such a model.
    assert 3.9 * GB < full.needs(1).state.total < 5.0 * GB


@pytest.mark.parametrize(
    ("method", "world_size", "free", "words"),
    [
        (Method.LORA, 1, 24, ["batch.micro_tokens"]),
        (Method.LORA, 1, 17, ["compute.checkpointing = full", "batch.micro_tokens"]),
        (Method.LORA, 1, 8, ["method = qlora"]),
        (Method.FULL, 8, 40, ["shards.zero = 3"]),
        (Method.FULL, 1, 60, ["shards.offload = true"]),
        (Method.FULL, 1, 24, ["method = lora"]),
    ],
)
def test_what_would_fit_is_said_and_fits(
    seven_billion: nn.Module, method: Method, world_size: int, free: float, words: list[str]
) -> None:
    config = config_of(method, batch=BatchSettings(max_tokens=1024))
    plan = Plan(seven_billion, config, world_size, torch.bfloat16, "cuda")
    with pytest.raises(NotEnoughMemory, match=f"{free}.0 GB are free") as met:
        plan.check(8192, free * GB)
    for word in words:
        assert word in met.value.hint
    changes = dict(re.findall(r"([\w.]+) = (\w+)", met.value.hint))
    told = config_of(
        Method(changes.get("method", method)),
        batch=config.batch,
        compute=ComputeSettings(checkpointing=changes.get("compute.checkpointing", "none")),
        shards=ShardSettings(zero=int(changes.get("shards.zero", 1)), offload="shards.offload" in changes),
        optimizer=OptimizerSettings(bits=int(changes.get("optimizer.bits", 32))),
    )
    Plan(seven_billion, told, world_size, torch.bfloat16, "cuda").check(
        int(changes.get("batch.micro_tokens", 8192)), free * GB
    )


def test_what_fits_nowhere_is_said(seven_billion: nn.Module) -> None:
    with pytest.raises(NotEnoughMemory) as met:
        Plan(seven_billion, config_of(), 1, torch.bfloat16, "cuda").check(1024, 2 * GB)
    assert "smaller model" in met.value.hint
