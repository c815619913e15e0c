"""Tiny random models of the families that are served, made and answered by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

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


# What the native kernels need: heads of a multiple of 16.
NATIVE_SIZES: dict[str, Any] = {"hidden_size": 64, "head_dim": 16}


def make_model(kind: str, options: dict[str, Any], folder: Path, seed: int = 0) -> Any:
    """A random model of transformers, saved in `folder` and returned in evaluation mode."""
    prefix = {"Gemma3": "Gemma3Text", "Gemma3n": "Gemma3nText"}.get(kind, kind)
    head = {"GPT2": "GPT2LMHeadModel", "Bert": "BertLMHeadModel"}.get(kind, f"{kind}ForCausalLM")
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


def broken_weights(weights: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Of two layers or more, each in a way of its own; named after what is said of it."""
    name = "model.layers.1.mlp.up_proj.weight"
    return {
        "missing": {key: value for key, value in weights.items() if key != name},
        "no place": {**weights, "model.layers.1.mlp.sideways.weight": weights[name]},
        "shape": {**weights, name: weights[name].T.contiguous()},
        "not finite": {**weights, name: weights[name].clone().fill_(float("nan"))},
    }


def internlm2_name(name: str) -> str:
    """What InternLM2 calls a tensor that LLaMA calls `name`."""
    for theirs, ours in {
        "model.embed_tokens": "model.tok_embeddings",
        "lm_head": "output",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    }.items():
        name = name.replace(theirs, ours)
    return name


def as_internlm2(folder: Path, group: int = 2, head_dim: int = 8) -> None:
    """Give a LLaMA in `folder` the names and the fused projection of InternLM2."""
    weights = load_file(folder / "model.safetensors")
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if "q_proj" in name:
            q, k, v = (weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv")
            rows: list[torch.Tensor] = []
            for head in range(len(k) // head_dim):
                rows += [q[head * group * head_dim : (head + 1) * group * head_dim]]
                rows += [part[head * head_dim : (head + 1) * head_dim] for part in (k, v)]
            renamed[name.replace("self_attn.q_proj", "attention.wqkv")] = torch.cat(rows)
        elif "k_proj" not in name and "v_proj" not in name:
            renamed[internlm2_name(name)] = tensor
    save_file(renamed, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "internlm2", "bias": config["attention_bias"], "attention_bias": None}
    (folder / "config.json").write_text(json.dumps(config))
