"""A step's samples as micro-batches: which go together, and the tensors that they become.

Every shard works out the whole step and takes its part, so nothing is exchanged, and how a step is cut depends on its
samples, the limit and the number of shards alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ...schemas.train import Packing
from ..data.tokenized import Pair, Sequence

Item = tuple[Sequence, ...]
"""What must be in one micro-batch: a sequence, or the chosen and the rejected one."""


@dataclass(frozen=True)
class MicroBatch:
    """Sequences as a model takes them: rows [num_rows, length], and what each predicts.

    token_ids, position_ids: int64 [num_rows, length]. Packed: one row with the sequences end to end, and `cu_seqlens`
    int32 [num_seqs + 1] says where each begins. Padded: a row for each, `cu_seqlens` is None.
    rows: int64 [num_loss], places in the flattened token_ids whose next token carries loss; targets: int64 [num_loss],
    that token; ends: the place in `rows` after the last of each sequence; last: int64 [num_seqs], each one's last
    token. num_tokens counts no padding.
    """

    token_ids: torch.Tensor
    position_ids: torch.Tensor
    cu_seqlens: torch.Tensor | None
    rows: torch.Tensor
    targets: torch.Tensor
    ends: tuple[int, ...]
    last: torch.Tensor
    num_tokens: int

    @property
    def num_loss_tokens(self) -> int:
        return self.ends[-1] if self.ends else 0

    def to(self, device: torch.device) -> MicroBatch:
        def moved(x: torch.Tensor) -> torch.Tensor:
            return x.to(device, non_blocking=True)

        return MicroBatch(
            moved(self.token_ids),
            moved(self.position_ids),
            None if self.cu_seqlens is None else moved(self.cu_seqlens),
            moved(self.rows),
            moved(self.targets),
            self.ends,
            moved(self.last),
            self.num_tokens,
        )


@dataclass(frozen=True)
class StepPlan:
    """A rank's part of a step. `num_items`, `num_loss_tokens`, `num_tokens` are of the whole step, over all ranks.
    Every rank has as many batches; one without sequences keeps the others company in what they exchange."""

    batches: tuple[MicroBatch, ...]
    num_items: int
    num_loss_tokens: int
    num_tokens: int


def item_of(sample: Sequence | Pair) -> Item:
    return tuple(sample) if isinstance(sample, Pair) else (sample,)


def plan_step(items: Many[Item], micro_tokens: int, packing: Packing, rank: int, world_size: int) -> StepPlan:
    """Micro-batches of at most `micro_tokens` tokens (padding included), or of one item that is longer by itself."""
    cut = _cut_packed if packing is Packing.PACKED else _cut_sorted
    groups = cut([_size(item) for item in items], micro_tokens, world_size)
    mine = groups[rank::world_size]
    build = packed if packing is Packing.PACKED else padded
    return StepPlan(
        tuple(build([sequence for index in group for sequence in items[index]]) for group in mine),
        len(items),
        sum(int(sequence.loss_mask[1:].sum()) for item in items for sequence in item),
        sum(len(sequence.token_ids) for item in items for sequence in item),
    )


def _size(item: Item) -> int:
    return sum(len(sequence.token_ids) for sequence in item)


def _cut_packed(sizes: Many[int], limit: int, multiple: int) -> list[list[int]]:
    """Groups of like sums, as few as the limit allows and a multiple of `multiple`: the longest first, each to the
    group that has least."""
    order = sorted(range(len(sizes)), key=lambda index: (-sizes[index], index))
    limit = max(limit, max(sizes, default=0))
    number = max(1, -(-sum(sizes) // limit))
    while True:
        number = -(-number // multiple) * multiple
        groups: list[list[int]] = [[] for _ in range(number)]
        sums = [0] * number
        for index in order:
            least = min(range(number), key=sums.__getitem__)
            groups[least].append(index)
            sums[least] += sizes[index]
        if max(sums) <= limit:
            return [sorted(group) for group in groups]
        number += 1


def _cut_sorted(sizes: Many[int], limit: int, multiple: int) -> list[list[int]]:
    """Neighbours by length, as many as fit when each is as long as the longest of them."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(sizes)), key=lambda index: (sizes[index], index)):
        longest = sizes[index]
        if groups and longest * (len(groups[-1]) + 1) <= limit:
            groups[-1].append(index)
        else:
            groups.append([index])
    while len(groups) % multiple:
        largest = max(range(len(groups)), key=lambda number: len(groups[number]), default=0)
        half = len(groups[largest]) // 2 if groups else 0
        groups.append(groups[largest][half:] if half else [])
        if half:
            groups[largest] = groups[largest][:half]
    return groups


def packed(sequences: Many[Sequence]) -> MicroBatch:
    if not sequences:
        return _empty()
    lengths = [len(sequence.token_ids) for sequence in sequences]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    rows, targets, ends = _targets(sequences, starts[:-1])
    return MicroBatch(
        _tensor(np.concatenate([sequence.token_ids for sequence in sequences]))[None],
        _tensor(np.concatenate([np.arange(length) for length in lengths]))[None],
        torch.from_numpy(starts.astype(np.int32)),
        rows,
        targets,
        ends,
        _tensor(starts[1:] - 1),
        int(starts[-1]),
    )


def padded(sequences: Many[Sequence]) -> MicroBatch:
    """Padding follows the tokens, so no causal layer sees it, and it is the token 0, whose loss nobody asks for."""
    if not sequences:
        return _empty()
    lengths = [len(sequence.token_ids) for sequence in sequences]
    width = max(lengths)
    token_ids = np.zeros((len(sequences), width), np.int64)
    for row, sequence in zip(token_ids, sequences, strict=True):
        row[: len(sequence.token_ids)] = sequence.token_ids
    starts = width * np.arange(len(sequences))
    rows, targets, ends = _targets(sequences, starts)
    positions = torch.arange(width).expand(len(sequences), -1)
    last = _tensor(starts + np.array(lengths) - 1)
    return MicroBatch(torch.from_numpy(token_ids), positions, None, rows, targets, ends, last, sum(lengths))


def part_of(batch: MicroBatch, number: int, size: int) -> MicroBatch:
    """The `number`-th of `size` equal parts of a packed batch's tokens, padded at the end with a sequence that nothing
    is learnt from. `cu_seqlens` stays that of the whole; `ends` and `last` do not hold for a part."""
    assert batch.cu_seqlens is not None, "only packed sequences are shared"
    length = batch.token_ids.shape[1]
    padding = -length % size
    cu_seqlens = batch.cu_seqlens
    if padding:
        cu_seqlens = torch.cat([cu_seqlens, cu_seqlens.new_tensor([length + padding])])
    each = (length + padding) // size
    begin, end = number * each, (number + 1) * each
    mine = (batch.rows >= begin) & (batch.rows < end)
    rows = batch.rows[mine] - begin
    return MicroBatch(
        F.pad(batch.token_ids, (0, padding))[:, begin:end],
        F.pad(batch.position_ids, (0, padding))[:, begin:end],
        cu_seqlens,
        rows,
        batch.targets[mine],
        (len(rows),),
        batch.last[:0],
        batch.num_tokens,
    )


def _targets(
    sequences: Many[Sequence], starts: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    places = [np.flatnonzero(sequence.loss_mask[1:]) for sequence in sequences]
    rows = np.concatenate([place + start for place, start in zip(places, starts, strict=True)])
    targets = np.concatenate([sequence.token_ids[place + 1] for sequence, place in zip(sequences, places, strict=True)])
    ends = tuple(np.cumsum([len(place) for place in places]).tolist())
    return _tensor(rows), _tensor(targets), ends


def _empty() -> MicroBatch:
    """One token that nothing is learnt from."""
    nothing = torch.zeros(0, dtype=torch.int64)
    token = torch.zeros(1, 1, dtype=torch.int64)
    return MicroBatch(token, token, torch.tensor([0, 1], dtype=torch.int32), nothing, nothing, (), nothing, 0)


def _tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.integer]]) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))
