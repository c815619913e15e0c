"""Models with our forward passes in their layers are the same models: hidden states, gradients, names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import SIZES
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from callboard.actors.train import attention
from callboard.actors.train.fast_layers import use_fast_layers

SLIDING = {"sliding_window": 3, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {"sliding_window": 3}),
    "mistral-all": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", SLIDING),
    "qwen3": ("qwen3", SLIDING),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0], "pad_token_id": 0}),
}


def make(family: str, options: dict[str, Any], implementation: str = attention.NAME) -> Any:
    attention.register()
    torch.manual_seed(3)
    config = AutoConfig.for_model(family, **{**SIZES, **options, "initializer_range": 0.3})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start as ones and zeros, which would hide that they are missed
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def results(model: Any) -> list[torch.Tensor]:
    """Hidden states of a packed batch, and the gradient of each parameter."""
    lengths = [7, 1, 12]
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, 200, (1, sum(lengths)), generator=generator)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    cu_seqlens = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with attention.packed(cu_seqlens):
        hidden = model.model(input_ids=token_ids, position_ids=positions, use_cache=False).last_hidden_state
        weights = torch.randn(hidden.shape, generator=generator)
        (hidden * weights).sum().backward()
    return [hidden.detach(), *(p.grad for p in model.model.parameters())]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_is_the_same_in_both_directions(family: str) -> None:
    kind, options = FAMILIES[family]
    plain, fast = make(kind, options), make(kind, options)
    names = dict(fast.named_parameters()).keys()
    replaced = use_fast_layers(fast)
    expected = [
        name
        for name, _ in plain.named_modules()
        if name.endswith(("self_attn", "mlp", "norm", "q_norm", "k_norm", "layernorm")) or name[:-1] == "model.layers."
    ]
    assert sorted(replaced) == sorted(expected)
    assert dict(fast.named_parameters()).keys() == names
    for ours, theirs in zip(results(fast), results(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().amax()))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_rows_with_padding_go_through_transformers_own_attention(implementation: str) -> None:
    plain, fast = make("llama", {}, implementation), make("llama", {}, implementation)
    assert "model.layers.0.self_attn" in use_fast_layers(fast)
    token_ids, mask = torch.randint(0, 200, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[0, 6:] = 0
    ours, theirs = (model(input_ids=token_ids, attention_mask=mask).logits for model in (fast, plain))
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-4)


def test_generation_with_a_cache_gives_the_same_tokens() -> None:
    plain, fast = make("qwen3", {}, "sdpa"), make("qwen3", {}, "sdpa")
    use_fast_layers(fast)
    prompt = torch.randint(3, 200, (1, 5))
    ours, theirs = (model.eval().generate(prompt, max_new_tokens=6, do_sample=False) for model in (fast, plain))
    assert torch.equal(ours, theirs)


def test_layers_that_only_look_alike_are_left_alone() -> None:
    class WithOffset(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return super().forward(hidden_states) + hidden_states * 1e-2

    class Clipped(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.clamp(-1, 1))

    config = AutoConfig.for_model("llama", **SIZES)
    relu = LlamaMLP(AutoConfig.for_model("llama", **SIZES, hidden_act="relu"))
    model = nn.ModuleDict({"norm": WithOffset(64), "clipped": Clipped(config), "relu": relu, "fits": LlamaMLP(config)})
    assert use_fast_layers(model) == ("fits",)


def test_a_wide_residual_beside_a_narrow_norm_keeps_its_own_rules() -> None:
    norm = LlamaRMSNorm(8)
    x = torch.randn(2, 8)
    expected = norm(x.bfloat16())
    assert use_fast_layers(nn.ModuleDict({"norm": norm})) == ("norm",)
    assert norm(x.bfloat16()).dtype == expected.dtype == torch.float32
    torch.testing.assert_close(norm(x.bfloat16()), expected)


def test_the_random_state_is_left_as_it_was() -> None:
    model = make("llama", {})
    before = torch.get_rng_state()
    use_fast_layers(model)
    assert torch.equal(torch.get_rng_state(), before)
