"""A model with random weights in Hugging Face's layout, for what depends on sizes alone; it reads single bytes.

`python -m callboard.actors.bench.random_model SIZES FOLDER DEVICE` writes one in a process of its own, so that whoever
measures holds nothing of it. SIZES is a `LlamaConfig` as JSON; DEVICE draws the numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..models.config import LlamaConfig
from .model_folder import in_own_process

if TYPE_CHECKING:
    import torch

SCALE = 0.02  # of random weights, as models are initialised
SHARD_BYTES = 2 << 30
_TIMEOUT_S = 900.0


def random_model(sizes: LlamaConfig, folder: Path, device: str) -> None:
    """Write it, in bfloat16. Raises BenchFailed."""
    arguments = (msgspec.json.encode(sizes).decode(), str(folder), device)
    in_own_process(__name__, arguments, _TIMEOUT_S, f"writing a random model to {folder}")


def transformers_sizes(sizes: LlamaConfig) -> Any:
    """The same sizes as a configuration of transformers, with its default rotary base."""
    import torch
    import transformers

    return transformers.LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        max_position_embeddings=sizes.context_length,
        rms_norm_eps=sizes.rms_norm_eps,
        tie_word_embeddings=sizes.tied_embeddings,
        dtype=torch.bfloat16,
    )


def _write(sizes: LlamaConfig, folder: Path, device: str) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    folder.mkdir(parents=True)
    config = transformers_sizes(sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(folder)
    _write_tokenizer(folder, sizes.vocab_size)
    shapes = {name: weight.shape for name, weight in model.named_parameters()}
    places: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    generator = torch.Generator(device).manual_seed(0)

    def end_shard() -> None:
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        places.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in shapes.items():
        shard[name] = _weight(shape, device, generator)
        if sum(weight.nbytes for weight in shard.values()) > SHARD_BYTES:
            end_shard()
    end_shard()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def _weight(shape: torch.Size, device: str, generator: torch.Generator) -> torch.Tensor:
    import torch

    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    weight = torch.empty(shape, dtype=torch.bfloat16, device=device)
    return weight.normal_(std=SCALE, generator=generator).cpu()


def _write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Of the bytes, and what ends a turn as the last entry."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    end = "<|im_end|>"
    vocab = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | {end: vocab_size - 1}, merges=[]))
    tokenizer.add_special_tokens([AddedToken(end, special=True)])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end).save_pretrained(folder)


if __name__ == "__main__":
    _write(msgspec.json.decode(sys.argv[1], type=LlamaConfig), Path(sys.argv[2]), sys.argv[3])
