"""LoRA adapters over one base model: many loaded, and in a batch each sequence with its own or none.

LoRA: https://arxiv.org/abs/2106.09685. What a folder in PEFT's format says is read by `peft_folder`; which of a
model's products an adapter's matrices belong to, the model knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from ...kernels import ops
from ...kernels.lora import Rows
from ...kernels.ragged import RaggedBatch
from ...kernels.upload import upload
from ...runtime.errors import RequestInvalid
from ...schemas.serve import AdapterInfo
from .errors import NoSuchAdapter


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one product: x -> (x @ a.T) @ b.T. a [rank, num_in]; b [num_out, rank], scaled."""

    a: torch.Tensor
    b: torch.Tensor

    def take(self, rows: torch.Tensor) -> LowRank:
        """With the outputs `rows`, in that order."""
        return LowRank(self.a, self.b[rows])


@dataclass(frozen=True)
class Adapter:
    """`products`: by the model's own name for each product. `rank`: the largest."""

    rank: int
    products: Mapping[str, LowRank]

    def to(self, dtype: torch.dtype, device: torch.device) -> Adapter:
        def moved(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, dtype).contiguous()

        return self.map(lambda _, pair: LowRank(moved(pair.a), moved(pair.b)))

    def map(self, function: Callable[[str, LowRank], LowRank]) -> Adapter:
        return Adapter(self.rank, {name: function(name, pair) for name, pair in self.products.items()})

    @property
    def num_bytes(self) -> int:
        return sum(pair.a.nbytes + pair.b.nbytes for pair in self.products.values())


@dataclass(frozen=True)
class SelectedAdapters:
    """The adapters that a batch uses, each with the rows of its sequences."""

    groups: tuple[tuple[Adapter, Rows], ...]

    def add(self, y: torch.Tensor, x: torch.Tensor, product: str) -> None:
        """Add to y [num_tokens, num_out], the product of x [num_tokens, num_in], what the adapters have for it."""
        for adapter, rows in self.groups:
            pair = adapter.products.get(product)
            if pair is not None:
                ops.lora(y, x, pair.a, pair.b, rows)


class AdapterStore:
    """The adapters that are loaded, by name. Loading a name again replaces it."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._loaded: dict[str, tuple[Adapter, AdapterInfo]] = {}

    def load(self, name: str, path: Path, read: Callable[[], Adapter]) -> AdapterInfo:
        """Raises what `read` raises; then nothing has changed."""
        if not name:
            raise RequestInvalid("an adapter needs a name")
        adapter = read().to(self._dtype, self._device)
        info = AdapterInfo(name, str(path), adapter.rank, adapter.num_bytes)
        self._loaded[name] = adapter, info
        return info

    def unload(self, name: str) -> None:
        self.get(name)
        del self._loaded[name]

    def products(self, name: str) -> tuple[str, ...]:
        """The products that an adapter adds to."""
        return tuple(self.get(name).products)

    def infos(self) -> tuple[AdapterInfo, ...]:
        return tuple(info for _, info in self._loaded.values())

    def select(self, names: Sequence[str] | None, batch: RaggedBatch) -> SelectedAdapters | None:
        """`names`: an adapter for each sequence of the batch, "" for none. None where no sequence has one."""
        if names is None or not any(names):
            return None
        if len(names) != batch.num_seqs:
            raise ValueError(f"{len(names)} adapters for {batch.num_seqs} sequences")
        starts, _ = batch.lengths()
        spans: dict[str, list[tuple[int, int]]] = {}  # runs of neighbouring sequences with the same adapter
        for name, run in groupby(range(len(names)), key=names.__getitem__):
            seqs = list(run)
            if name and starts[seqs[0]] < starts[seqs[-1] + 1]:
                spans.setdefault(name, []).append((starts[seqs[0]], starts[seqs[-1] + 1]))
        return SelectedAdapters(tuple((self.get(name), _rows(parts, self._device)) for name, parts in spans.items()))

    def get(self, name: str) -> Adapter:
        """Raises NoSuchAdapter."""
        if name not in self._loaded:
            loaded = ", ".join(sorted(self._loaded)) or "none"
            raise NoSuchAdapter(f"there is no adapter '{name}' (loaded: {loaded})")
        return self._loaded[name][0]


def _rows(spans: Sequence[tuple[int, int]], device: torch.device) -> Rows:
    if len(spans) == 1:
        return slice(*spans[0])
    return upload([torch.cat([torch.arange(begin, end) for begin, end in spans])], device)[0]
