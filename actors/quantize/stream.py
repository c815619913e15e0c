"""The calibration text on its way through a model: the hidden states before a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

_QUANTIZED, _PLAIN = "stream", "plain"


@dataclass
class Stream:
    """Both [num_seqs, length, hidden], float32, and changed in place. `quantized`: as the layers before made it, those
    that are quantized so far. `plain`: as the model's own layers make it, where a method wants to know; else None."""

    quantized: torch.Tensor
    plain: torch.Tensor | None = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, to be written."""
        found = {_QUANTIZED: self.quantized}
        return found if self.plain is None else found | {_PLAIN: self.plain}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Stream:
        """KeyError where they are not those of a stream."""
        return cls(tensors[_QUANTIZED], tensors.get(_PLAIN))
