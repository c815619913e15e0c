"""From a file of the store to what serves it: a tokenizer, a decoder. Never touches the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ...kernels.ragged import RaggedBatch
from ...runtime.errors import ConfigError
from ...schemas.serve import AdapterInfo
from .config import LlamaConfig
from .errors import NoSuchAdapter, UnsupportedModel
from .gguf import GGUFFile
from .kv_cache import KVCache
from .llama import LlamaDecoder
from .served import ModelOptions, ServedModel
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


class ServedLlama:
    """The lean decoder as a `ServedModel`, without adapters and other weight formats."""

    kernels = "torch"

    def __init__(self, decoder: LlamaDecoder) -> None:
        self._decoder = decoder
        self.vocab_size = decoder.config.vocab_size
        self.hidden_size = decoder.config.hidden_size
        self.context_length = decoder.config.context_length
        self.dtype = decoder.dtype

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self._decoder.parameters())

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        return KVCache(self._decoder.config, num_blocks, block_size, self.dtype)

    def forward(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        batch: RaggedBatch,
        adapters: Sequence[str] | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        return self._decoder(token_ids, cache, batch)

    def logits(self, hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return self._decoder.logits(hidden).float()

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        raise UnsupportedModel("this decoder takes no adapters")

    def unload_adapter(self, name: str) -> None:
        raise NoSuchAdapter(f"there is no adapter '{name}'")

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return ()


def load_model(path: Path, options: ModelOptions) -> ServedModel:
    """The model with its weights, ready to run."""
    return ServedLlama(load_decoder(path, dtype_of(options.dtype)))
