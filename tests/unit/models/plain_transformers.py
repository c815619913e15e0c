"""What answers are held against: plain transformers, with the weights of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM

from callboard.actors.models.config import LlamaConfig
from callboard.actors.models.gguf import GGUFFile
from callboard.actors.models.weights import gguf_weights


def transformers_model(path: Path) -> LlamaForCausalLM:
    """The same weights in plain transformers, built from nothing but the file."""
    with GGUFFile(path) as file:
        config = LlamaConfig.from_gguf(file)
        weights = dict(gguf_weights(file, config))
    model = LlamaForCausalLM(
        TransformersConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=config.context_length,
            tie_word_embeddings=config.tied_embeddings,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    if config.tied_embeddings:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights)
    return model.eval()


@torch.inference_mode()
def reference_tokens(model: LlamaForCausalLM, prompt: list[int], num_tokens: int) -> list[int]:
    anything: Any = model  # its own annotations do not admit its generate()
    out = anything.generate(torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)
    return out[0, len(prompt) :].tolist()
