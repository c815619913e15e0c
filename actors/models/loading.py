"""From a file of the store to what serves it: a tokenizer, a decoder. Never touches the network."""

from __future__ import annotations

from pathlib import Path

import torch

from ...runtime.errors import ConfigError
from .config import LlamaConfig
from .gguf import GGUFFile
from .llama import LlamaDecoder
from .tokenizer import Tokenizer
from .weights import gguf_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"there is no weight type '{name}'", hint=f"choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_tokenizer(path: Path) -> Tokenizer:
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file)


def load_config(path: Path) -> LlamaConfig:
    with GGUFFile(path) as file:
        return LlamaConfig.from_gguf(file)


def load_decoder(path: Path, dtype: torch.dtype) -> LlamaDecoder:
    """The decoder with its weights dequantized to `dtype`, ready to run."""
    with GGUFFile(path) as file:
        decoder = LlamaDecoder(LlamaConfig.from_gguf(file), dtype)
        decoder.load_weights(gguf_weights(file, decoder.config))
    return decoder.eval()
