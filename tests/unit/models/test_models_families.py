"""Every family against plain transformers: the same logits, on a tiny random model that transformers itself saved.

Sequences of several lengths share a batch, prompts come in chunks beside others that decode already, and blocks lie
in any order: logits must be those of transformers' forward pass over each whole text.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from callboard.actors.models.llama import LlamaDecoder
from callboard.actors.models.loading import load_config, load_model
from callboard.actors.models.served import ModelOptions
from callboard.actors.models.transformers_model import TransformersModel

Serve = Callable[..., list[torch.Tensor]]

VOCAB = 96
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
HALF_SLIDING = {
    "use_sliding_window": True,
    "sliding_window": 7,
    "layer_types": ["full_attention", "sliding_attention"],
}
LEAN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama-rope-yarn": ("Llama", {"rope_parameters": YARN}),
    "llama-rope-yarn-mscale": (
        "Llama",
        {"rope_parameters": {**YARN, "mscale": 0.8, "mscale_all_dim": 0.5, "truncate": False, "beta_fast": 8.0}},
    ),
    "llama-rope-dynamic": ("Llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "mistral-unlimited": ("Mistral", {"sliding_window": None}),
    "ministral": (
        "Ministral",
        {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"], "head_dim": 8},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-half-sliding": ("Qwen2", HALF_SLIDING),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-biases": ("Qwen3", {"head_dim": 16, "attention_bias": True, **HALF_SLIDING}),
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
IN_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8}),
    "phi": ("Phi", {}),
    "phi3": ("Phi3", {"sliding_window": 6}),
    "gpt-neox": ("GPTNeoX", {"num_key_value_heads": 4}),
    "gpt2": ("GPT2", {"num_key_value_heads": 4}),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": 4}),
    "stablelm": ("StableLm", {}),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.4, "embedding_multiplier": 2.0}),
    "cohere": ("Cohere", {"logit_scale": 0.3}),
    "gpt-oss": ("GptOss", {**MOE, "head_dim": 8, "sliding_window": 6}),
    "mixtral": ("Mixtral", {**MOE, "sliding_window": None}),
    "qwen3-moe": (
        "Qwen3Moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
}


def make_model(kind: str, options: dict[str, Any], folder: Path, seed: int = 0) -> Any:
    """A random model of transformers, saved in `folder` and returned in evaluation mode."""
    prefix = {"Gemma3": "Gemma3Text"}.get(kind, kind)
    head = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    torch.manual_seed(seed)
    config = getattr(transformers, f"{prefix}Config")(**{**COMMON, **options})
    model = getattr(transformers, head)(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # biases and norms start as zeros and ones, which would hide that they are missed
                parameter.add_(0.2 * torch.randn_like(parameter))
            assert name
    model.save_pretrained(folder)
    return model.eval()


TEXTS = [
    torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    for length in (1, 9, 16, 17, 33)
]


@torch.inference_mode()
def expected_logits(model: Any, texts: list[list[int]] = TEXTS) -> list[torch.Tensor]:
    return [model(input_ids=torch.tensor([text]), use_cache=False).logits[0].float() for text in texts]


def assert_same(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-4) -> None:
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LEAN)
def test_the_lean_decoder_has_the_logits_of_transformers(name: str, tmp_path: Path, serve: Serve) -> None:
    reference = make_model(*LEAN[name], tmp_path)
    model = load_model(tmp_path, ModelOptions())
    assert isinstance(model, LlamaDecoder)
    assert_same(serve(model, TEXTS, chunk=6), expected_logits(reference))
    assert_same(serve(model, TEXTS, chunk=64), expected_logits(reference))


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_other_families_have_the_logits_of_transformers(name: str, tmp_path: Path, serve: Serve) -> None:
    reference = make_model(*IN_TRANSFORMERS[name], tmp_path)
    model = load_model(tmp_path, ModelOptions())
    assert isinstance(model, TransformersModel)
    assert load_config(tmp_path).kv_shapes == model.kv_shapes
    assert_same(serve(model, TEXTS, chunk=6), expected_logits(reference))
    assert_same(serve(model, TEXTS, chunk=64), expected_logits(reference))
