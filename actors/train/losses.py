"""What is learnt: one class for each task, from a micro-batch to its part of the step's loss.

A part is a sum over the batch divided by the count of the whole step, so that parts add up to the step's mean however
the step was cut. Preferences are pairs that lie next to each other: chosen, rejected, chosen, rejected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from ...schemas.train import PreferenceSettings, Task
from .batches import MicroBatch, StepPlan
from .trainable import TrainableModel

Reference = Callable[[MicroBatch], torch.Tensor]
"""The log-probability of each sequence's tokens with loss, [num_seqs], in the model that training began with."""

Reduce = Callable[[torch.Tensor], torch.Tensor]
"""Sums over all ranks."""


class Loss(Protocol):
    """`wants_reference`: `reference` is called, and is none otherwise. `is_pairs`: of data, see `TrainingData`."""

    wants_reference: bool
    is_pairs: bool

    def prepare(
        self, module: TrainableModel, plan: StepPlan, batches: list[MicroBatch], reference: Reference, reduce: Reduce
    ) -> None:
        """What a step needs to know of all its batches before the first."""
        ...

    def part(
        self, module: TrainableModel, batch: MicroBatch, plan: StepPlan, reference: Reference
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The batch's part of the loss, a scalar, and of what else is reported, each a mean over the step's items."""
        ...


class _NothingToPrepare:
    def prepare(
        self, module: TrainableModel, plan: StepPlan, batches: list[MicroBatch], reference: Reference, reduce: Reduce
    ) -> None:
        """Each batch stands for itself."""


class NextToken(_NothingToPrepare):
    """Cross-entropy of tokens with loss, each token of the step alike."""

    wants_reference = False
    is_pairs = False

    def part(
        self, module: TrainableModel, batch: MicroBatch, plan: StepPlan, reference: Reference
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return module(batch) / max(1, plan.num_loss_tokens), {}


class _Pairs(_NothingToPrepare, ABC):
    wants_reference = False
    is_pairs = True

    def __init__(self, settings: PreferenceSettings) -> None:
        self.settings = settings

    def part(
        self, module: TrainableModel, batch: MicroBatch, plan: StepPlan, reference: Reference
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logps = -module(batch, each=True)
        if not len(logps):
            return module(batch), {}
        counts = torch.tensor(batch.ends, device=logps.device).diff(prepend=logps.new_zeros(1, dtype=torch.int64))
        earlier = reference(batch) if self.wants_reference else logps.detach()
        losses, rewards = self.losses(logps, counts, earlier)
        chosen, rejected = rewards.detach().view(-1, 2).unbind(1)
        metrics = {
            "accuracy": (chosen > rejected).float().sum() / plan.num_items,
            "margin": (chosen - rejected).sum() / plan.num_items,
            "chosen": chosen.sum() / plan.num_items,
            "rejected": rejected.sum() / plan.num_items,
        }
        return losses.sum() / plan.num_items, metrics

    @abstractmethod
    def losses(
        self, logps: torch.Tensor, counts: torch.Tensor, earlier: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """logps, earlier [2 * num_pairs]: log-probabilities now and in the reference; counts: of their tokens. Returns
        losses [num_pairs], and the reward of each sequence [2 * num_pairs]."""


class Dpo(_Pairs):
    """Rafailov et al., "Direct Preference Optimization" (arXiv:2305.18290); with label smoothing, Mitchell's cDPO."""

    wants_reference = True

    def losses(
        self, logps: torch.Tensor, counts: torch.Tensor, earlier: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rewards = self.settings.beta * (logps - earlier)
        chosen, rejected = rewards.view(-1, 2).unbind(1)
        smoothing = self.settings.label_smoothing
        losses = -(1 - smoothing) * F.logsigmoid(chosen - rejected) - smoothing * F.logsigmoid(rejected - chosen)
        return losses + self.settings.sft * _own_loss(logps, counts), rewards


class Orpo(_Pairs):
    """Hong et al., "ORPO: Monolithic Preference Optimization without Reference Model" (arXiv:2403.07691)."""

    def losses(
        self, logps: torch.Tensor, counts: torch.Tensor, earlier: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        means = logps / counts
        odds = means - torch.log1p(-means.exp().clamp(max=1 - 1e-6))
        chosen, rejected = odds.view(-1, 2).unbind(1)
        ratio = F.logsigmoid(chosen - rejected)
        return _own_loss(logps, counts) - self.settings.beta * ratio, self.settings.beta * means


class SimPo(_Pairs):
    """Meng et al., "SimPO: Simple Preference Optimization with a Reference-Free Reward" (arXiv:2405.14734)."""

    def losses(
        self, logps: torch.Tensor, counts: torch.Tensor, earlier: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        settings = self.settings
        rewards = settings.beta * logps / counts
        chosen, rejected = rewards.view(-1, 2).unbind(1)
        losses = -F.logsigmoid(chosen - rejected - settings.beta * settings.margin)
        return losses + settings.sft * _own_loss(logps, counts), rewards


class Kto(_Pairs):
    """Ethayarajh et al., "KTO: Model Alignment as Prospect Theoretic Optimization" (arXiv:2402.01306), on pairs: the
    answers that were not chosen stand in for the mismatched ones of the paper as the point that gains are measured
    from, and those that were chosen for losses. That point is of the whole step."""

    wants_reference = True

    def prepare(
        self, module: TrainableModel, plan: StepPlan, batches: list[MicroBatch], reference: Reference, reduce: Reduce
    ) -> None:
        sums = torch.zeros(2, device=next(module.parameters()).device)
        with torch.no_grad():
            for batch in batches:
                ratios = -module(batch, each=True) - reference(batch)
                sums += ratios.view(-1, 2).sum(0)
        self.origin = (reduce(sums) / plan.num_items).clamp(min=0)

    def losses(
        self, logps: torch.Tensor, counts: torch.Tensor, earlier: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        beta = self.settings.beta
        chosen, rejected = (logps - earlier).view(-1, 2).unbind(1)
        gains = torch.sigmoid(beta * (chosen - self.origin[1]))
        losses = torch.sigmoid(beta * (self.origin[0] - rejected))
        return 1 - (gains + losses) / 2, beta * (logps - earlier)


class Reward(_NothingToPrepare):
    """Bradley and Terry's model: the score of what was chosen is above the other's."""

    wants_reference = False
    is_pairs = True

    def part(
        self, module: TrainableModel, batch: MicroBatch, plan: StepPlan, reference: Reference
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        scores = module(batch)
        if not batch.ends:
            return scores, {}
        chosen, rejected = scores.view(-1, 2).unbind(1)
        wins = (chosen > rejected).float().sum() / plan.num_items
        margin = (chosen - rejected).detach().sum() / plan.num_items
        return -F.logsigmoid(chosen - rejected).sum() / plan.num_items, {"accuracy": wins, "margin": margin}


def loss_of(task: Task, settings: PreferenceSettings) -> Loss:
    if task is Task.SFT:
        return NextToken()
    if task is Task.REWARD:
        return Reward()
    return {Task.DPO: Dpo, Task.ORPO: Orpo, Task.SIMPO: SimPo, Task.KTO: Kto}[task](settings)


def _own_loss(logps: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the chosen answers, a mean over the tokens of each, [num_pairs]."""
    return -(logps / counts).view(-1, 2)[:, 0]
