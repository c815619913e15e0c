"""The model that training began with, which DPO and KTO compare with."""

from __future__ import annotations

import copy

import torch

from ...schemas.train import TrainConfig
from .adapters import without_adapter
from .batches import MicroBatch
from .building import BuiltModel


class Reference:
    """Log-probabilities [num_seqs] of the tokens with loss of each sequence. With an adapter, the model without it;
    else a copy of the model, made now."""

    def __init__(self, model: BuiltModel, config: TrainConfig) -> None:
        self._module = model.module
        self._copy = None
        if model.wrapped is None:
            self._copy = copy.deepcopy(model.module).requires_grad_(False).eval()

    def __call__(self, batch: MicroBatch) -> torch.Tensor:
        if self._copy is not None:
            return -self._copy(batch, each=True)
        was_training = self._module.training
        self._module.eval()
        try:
            with without_adapter(self._module):
                return -self._module(batch, each=True)
        finally:
            self._module.train(was_training)
