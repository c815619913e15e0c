"""What serves tokens, whatever computes them: the protocol of a model that an engine runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from ...kernels.ragged import RaggedBatch
from ...schemas.serve import AdapterInfo
from .kv_cache import KVCache


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model is loaded. `dtype`: what is computed in, float32 or bfloat16. `weights`: how weights are kept
    ("": as `dtype`); `kv`: how keys and values are kept ("": as `dtype`). Where `dtype` is "" too, weights are kept as
    the model's file keeps them, and the rest in float32 for float32 weights, in bfloat16 for others (float16 on cards
    without it). `device`: see `compute_device`. `threads`: of one operation (0: as torch). `cuda_graphs`: decoding
    steps are recorded and replayed, where that can be."""

    dtype: str = ""
    weights: str = ""
    kv: str = ""
    device: str = ""
    threads: int = 0
    cuda_graphs: bool = True


class ModelShape(Protocol):
    """What an engine must know of a model before it is loaded: `load_config` says so."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def context_length(self) -> int: ...
    @property
    def num_layers(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def kv_shapes(self) -> tuple[tuple[int, int], ...]: ...


class ServedModel(Protocol):
    """A decoder with its weights. Calls run under `torch.inference_mode`, one at a time, from one thread.

    `kernels` says what computes: `torch`, `native`, `triton`, `transformers`. What is given to it and comes from it is
    on its `device`. `deterministic`: a token's numbers depend on its own sequence alone, and not on what else is in the
    batch or how its prompt was divided.
    """

    vocab_size: int
    hidden_size: int
    context_length: int
    kernels: str
    dtype: torch.dtype
    device: torch.device

    @property
    def weight_bytes(self) -> int: ...

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache: ...

    def forward(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        batch: RaggedBatch,
        adapters: Sequence[str] | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        """token_ids [num_tokens] -> hidden states after the last norm, [num_tokens, hidden]; writes the tokens' keys
        and values. `adapters`: one for each sequence, "" for none. Raises NoSuchAdapter."""
        ...

    def logits(self, hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        """hidden [num_rows, hidden] -> float32 [num_rows, vocab]."""
        ...

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        """Load a LoRA adapter, or replace the one of that name. NoSuchModel, ModelDamaged, UnsupportedModel."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Raises NoSuchAdapter."""
        ...

    def adapters(self) -> tuple[AdapterInfo, ...]: ...
