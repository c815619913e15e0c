"""A trainable parameter as one rank keeps it, and what a checkpoint holds of it: the same names for every ZeRO stage.

Floats are saved in the parameter's shape, a share of the rows by each rank, so that torch.distributed.checkpoint deals
them out anew to any number of ranks. Moments in eight bits have a scale for each 256 values of a rank's share, and
where shares change, so do those blocks: the scales are saved by rank, and read into other shares the moments are
unpacked by the old blocks and packed in the new ones.

weights.NAME                            float32: the master, or the parameter itself; its own type without a master
average.NAME                            float32, where an average is kept
first.NAME, second.NAME                 float32, or uint8 codes of that shape and
first_scales.NAME, second_scales.NAME   float32 [num_ranks, most blocks of a rank]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from ...kernels.blockwise8 import BLOCK, Blockwise8, Moment, dynamic_map
from .group import Group
from .optimizer import Stretch
from .rows import num_rows_each, row_length, rows_of, spread


@dataclass(frozen=True)
class Piece:
    """`local`: this rank's rows of the parameter, flat; `begin`: where they lie in `stretch`, at a multiple of
    BLOCK where moments have eight bits."""

    name: str
    shape: torch.Size
    local: torch.Tensor
    stretch: Stretch
    begin: int

    def in_stretch(self, flat: torch.Tensor) -> torch.Tensor:
        return flat[self.begin : self.begin + len(self.local)]

    @property
    def weights(self) -> torch.Tensor:
        """The values that the next step begins with."""
        return self.local if self.stretch.master is None else self.in_stretch(self.stretch.master)


def state_of(pieces: Sequence[Piece], group: Group, num_ranks: int) -> dict[str, Any]:
    """What `take` reads after it was filled from what `num_ranks` ranks have saved. Tensors are the live ones where
    they can be."""
    state: dict[str, Any] = {}
    for piece in pieces:
        rows = (-1, *piece.shape[1:]) if len(piece.local) else (0, *piece.shape[1:])
        flats = {"weights": piece.weights}
        if piece.stretch.average is not None:
            flats["average"] = piece.in_stretch(piece.stretch.average)
        for kind, moment in _moments(piece):
            if isinstance(moment, Blockwise8):
                flats[kind] = piece.in_stretch(moment.codes)
                state[f"{kind}_scales.{piece.name}"] = _scales(piece, moment, group, num_ranks)
            else:
                flats[kind] = piece.in_stretch(moment.view(-1))
        for kind, flat in flats.items():
            state[f"{kind}.{piece.name}"] = spread(flat.view(rows), piece.shape, group)
    return state


def take(pieces: Sequence[Piece], group: Group, state: dict[str, Any], num_ranks: int) -> None:
    """Finish what the reading of a checkpoint into `state_of(pieces, group, num_ranks)` began."""
    for piece in pieces:
        for kind, moment in _moments(piece):
            if not isinstance(moment, Blockwise8):
                continue
            scales = state[f"{kind}_scales.{piece.name}"]
            if num_ranks == group.world_size:
                local = scales if group.mesh is None else scales.to_local()
                blocks = _blocks(piece, moment)
                blocks.copy_(local[0, : len(blocks)])
            else:
                moment.write(_unpacked(piece, moment, scales, group, num_ranks), piece.begin)


def whole(pieces: Sequence[Piece], group: Group) -> Iterator[tuple[str, torch.Tensor]]:
    """Each parameter in float32 on rank 0's CPU, empty elsewhere; the average where one is kept."""
    for piece in pieces:
        average = piece.stretch.average
        flat = (piece.weights if average is None else piece.in_stretch(average)).detach().float()
        if group.world_size == 1:
            yield piece.name, flat.to("cpu", copy=True).view(piece.shape)
            continue
        each = num_rows_each(piece.shape[0], group.world_size) * row_length(piece.shape)
        padded = torch.nn.functional.pad(flat, (0, each - len(flat)))
        parts = [torch.empty_like(padded) for _ in range(group.world_size)] if group.rank == 0 else None
        dist.gather(padded, parts)
        if parts is None:
            yield piece.name, torch.empty(0)
        else:
            yield piece.name, torch.cat(parts)[: piece.shape.numel()].cpu().view(piece.shape)


def _moments(piece: Piece) -> tuple[tuple[str, Moment], tuple[str, Moment]]:
    return ("first", piece.stretch.first), ("second", piece.stretch.second)


def _blocks(piece: Piece, moment: Blockwise8) -> torch.Tensor:
    first = piece.begin // BLOCK
    return moment.scales[first : first + -(-len(piece.local) // BLOCK)]


def _num_blocks(piece: Piece, num_ranks: int) -> int:
    return -(-num_rows_each(piece.shape[0], num_ranks) * row_length(piece.shape) // BLOCK)


def _scales(piece: Piece, moment: Blockwise8, group: Group, num_ranks: int) -> torch.Tensor:
    width = _num_blocks(piece, num_ranks)
    shape = torch.Size([num_ranks, width])
    if num_ranks != group.world_size:
        return moment.scales.new_zeros(shape)  # everybody reads all of them: one for 256 values
    blocks = _blocks(piece, moment)
    return spread(torch.nn.functional.pad(blocks, (0, width - len(blocks)))[None], shape, group)


def _unpacked(piece: Piece, moment: Blockwise8, scales: torch.Tensor, group: Group, num_ranks: int) -> torch.Tensor:
    """This rank's codes, which `num_ranks` ranks have written with these scales, as float32."""
    row = row_length(piece.shape)
    start = rows_of(piece.shape[0], group.world_size, group.rank).start * row
    places = start + torch.arange(len(piece.local), device=scales.device)
    each = num_rows_each(piece.shape[0], num_ranks) * row
    owner, place = places // each, places % each
    codes = piece.in_stretch(moment.codes).int()
    return dynamic_map(moment.signed, scales.device)[codes] * scales[owner, place // BLOCK]
