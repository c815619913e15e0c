"""Grids of whole numbers that weights are rounded to: for each group of inputs of an output a scale and a zero.

Every method below ends in one of these grids, so what they differ in is the codes alone. The last group of a row may
be shorter than the others, where a matrix is measured and not written.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

# How far a group's ends are drawn in at most when clipping is searched for, and in how many steps.
CLIP_LEAST = 0.6
CLIP_STEPS = 10


@dataclass(frozen=True)
class GridSpec:
    """What all grids of a model have in common. `group_size` 0: one grid for a whole row.

    `scale_dtype`: the type in which scales are written, and to which they are rounded before anything else is.
    """

    bits: int
    group_size: int = 0
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"bits is 4 or 8, not {self.bits}")
        if self.group_size < 0:
            raise ValueError(f"group_size is {self.group_size}")

    @property
    def largest(self) -> int:
        return (1 << self.bits) - 1

    @property
    def smallest(self) -> int:
        """With 8 bits a symmetric grid has as many codes on either side of zero: -128 is not used."""
        return 1 if self.symmetric and self.bits == 8 else 0

    def group(self, num_in: int) -> int:
        return min(self.group_size or num_in, num_in)

    def num_groups(self, num_in: int) -> int:
        return -(-num_in // self.group(num_in))


@dataclass(frozen=True)
class Grid:
    """scales, zeros [num_out, num_groups], zeros in steps of a code; a value is (code - zero) * scale."""

    spec: GridSpec
    num_in: int
    scales: torch.Tensor
    zeros: torch.Tensor

    def columns(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales and zeros of each input, given the group of each: [num_out, len(groups)]."""
        return self.scales.index_select(1, groups), self.zeros.index_select(1, groups)

    @property
    def groups(self) -> torch.Tensor:
        """int64 [num_in]: the group of each input."""
        return torch.arange(self.num_in, device=self.scales.device) // self.spec.group(self.num_in)

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """The nearest codes of weight [num_out, num_in], in its floating type."""
        return nearest(weight, *self.columns(self.groups), self.spec)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        scales, zeros = self.columns(self.groups)
        return (codes - zeros) * scales


def nearest(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, spec: GridSpec) -> torch.Tensor:
    """Codes, whole numbers in weight's type; all shapes alike. A scale of 0 gives the zero's code."""
    steps = torch.where(scales > 0, weight / scales, 0)
    return (steps.round() + zeros).clamp_(spec.smallest, spec.largest)


def fit_grid(weight: torch.Tensor, spec: GridSpec) -> Grid:
    """The grid of weight [num_out, num_in]: from the least to the largest of each group, zero on a code."""
    return Grid(spec, weight.shape[1], *_between(*_ends(grouped(weight, spec)), spec))


def clip_grid(weight: torch.Tensor, hessian: torch.Tensor, spec: GridSpec) -> Grid:
    """AWQ's clipping: each group's ends are drawn in as far as leaves the least error of its share of the output.

    hessian [num_in, num_in]: the mean of x x^T over inputs x. Only what lies within a group is looked at.
    """
    groups = grouped(weight, spec)
    low, high = _ends(groups)
    group = groups.shape[-1]
    padded = F.pad(hessian.to(weight.dtype), (0, -len(hessian) % group) * 2)
    # [num_groups, group, group]: the blocks along the diagonal
    blocks = torch.stack([rows[:, at * group : (at + 1) * group] for at, rows in enumerate(padded.split(group))])
    best, least = _between(low, high, spec), None
    for factor in torch.linspace(1, CLIP_LEAST, CLIP_STEPS + 1).tolist():
        tried = _between(low * factor, high * factor, spec)
        scales, zeros = (part[..., None] for part in tried)
        difference = (nearest(groups, scales, zeros, spec) - zeros) * scales - groups
        turned = difference.transpose(0, 1)  # [num_groups, num_out, group]
        error = (torch.bmm(turned, blocks) * turned).sum(-1).T
        if least is None:
            best, least = tried, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = tuple(torch.where(better, new, old) for new, old in zip(tried, best, strict=True))
    return Grid(spec, weight.shape[1], *best)


def _between(low: torch.Tensor, high: torch.Tensor, spec: GridSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zeros of grids from `low` to `high`, each [num_out, num_groups], in the type of these."""
    if spec.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scales = ((high - low) / (spec.largest - spec.smallest)).to(spec.scale_dtype).to(low.dtype)
    if not bool(scales.isfinite().all()):
        raise ValueError(f"weight is not finite, or beyond what scales of {spec.scale_dtype} reach")
    if spec.symmetric:
        return scales, torch.full_like(scales, (spec.largest + 1) // 2)
    zeros = torch.where(scales > 0, -low / scales, 0).round().clamp(0, spec.largest)
    return scales, zeros


def _ends(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest of each group, zero between them."""
    return groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)


def grouped(weight: torch.Tensor, spec: GridSpec) -> torch.Tensor:
    """[num_out, num_in] -> [num_out, num_groups, group]; copies of the last value fill the last group."""
    group = spec.group(weight.shape[1])
    missing = -weight.shape[1] % group
    if missing:
        weight = torch.cat([weight, weight[:, -1:].expand(-1, missing)], 1)
    return weight.unflatten(1, (-1, group))
