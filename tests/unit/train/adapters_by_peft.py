"""Adapters as PEFT makes and saves them, with random numbers in place of trained ones."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import peft
import torch
from transformers import AutoModelForCausalLM


def save_adapter(base: Path, folder: Path, *, seed: int = 1, **options: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied layers that are adapted
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" in name:
                    noise = 0.3 * torch.randn_like(parameter)
                    parameter.copy_(parameter.abs() + noise.abs() if "magnitude" in name else noise)
        wrapped.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def logits_with(base: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """ids [1, length] -> [length, vocab], by PEFT over transformers."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped: Any = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    with torch.no_grad():
        return wrapped(input_ids=ids, use_cache=False).logits[0]


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0]


def served_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """The same by the engine's own loader, in float32, without kernels that would have to be compiled first."""
    from callboard.actors.models.loading import load_model
    from callboard.actors.models.served import ModelOptions
    from callboard.kernels import native
    from callboard.kernels.ragged import RaggedBatch

    options = ModelOptions(dtype="float32", weights="float32", kv="float32", device="cpu")
    with mock.patch.object(native, "unavailable", return_value="a test turns them off"):
        model = load_model(path, options)
    length = ids.shape[1]
    num_blocks = -(-length // 16)
    with torch.inference_mode():
        batch = RaggedBatch.build([length], [length], [list(range(num_blocks))], 16)
        hidden = model.forward(ids[0], model.new_cache(num_blocks, 16), batch, None, False)
        return model.logits(hidden, False)
