"""ZeRO-1: parameters whole on every rank; the optimizer's state, and the work of its step, shared.

Rajbhandari et al., "ZeRO" (arXiv:1910.02054), the first stage. A group of one is the same without the others.

Parameters of one type are dealt out in buckets. In a bucket each rank has a stretch of the same length: of every
parameter a share of its rows, padded to that of the first rank and, with moments in eight bits, to where a block
begins.

    rank 0   | a's rows 0-3 .. | b's rows 0-1 . |      one collective for a bucket's gradients [world_size, length]
    rank 1   | a's rows 4-6 .. | b's row  2   . |      and one for its parameters
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...kernels.blockwise8 import BLOCK
from .group import Group, all_gather, reduce_scatter
from .memory import StateBytes, bytes_of
from .optimizer import Recipe, Stretch, decays, moment_bytes
from .pieces import Piece, state_of, take, whole
from .rows import num_rows_each, row_length, rows_of, shape_in_rows

# Values of a bucket, over all ranks: enough that a collective's latency is nothing beside its bytes, and little enough
# that a second copy of one is no matter. A parameter that has more is a bucket by itself.
BUCKET = 1 << 24
# Where a parameter may begin where moments have no blocks: at a cache line, in float32.
LINE = 16


@dataclass(frozen=True)
class Place:
    """Of a parameter in its bucket: values [begin, begin + each) of each rank's stretch."""

    name: str
    param: nn.Parameter
    begin: int
    each: int

    @property
    def shape(self) -> torch.Size:
        return shape_in_rows(self.param.shape)

    def pairs(self, flat: torch.Tensor, buffer: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Views of the whole parameter, flat, beside its places in a bucket's `buffer` [world_size, length]."""
        places = buffer[:, self.begin : self.begin + self.each]
        num_full = len(flat) // self.each
        yield flat[: num_full * self.each].view(num_full, self.each), places[:num_full]
        if rest := len(flat) - num_full * self.each:
            yield flat[num_full * self.each :], places[num_full, :rest]


@dataclass
class Bucket:
    """`grads` float32 [world_size, length], from the first gradient of a step until they are added up; then this rank's
    stretch of the sum is `grad` [length]. `written`: the parameters that have a gradient in them."""

    places: list[Place]
    length: int
    stretch: Stretch
    values: torch.Tensor | None
    """The parameters themselves, in a group of one."""
    grads: torch.Tensor | None = None
    grad: torch.Tensor | None = None
    written: set[str] = field(default_factory=set)


class Replicated:
    def __init__(self, module: nn.Module, group: Group, recipe: Recipe) -> None:
        self.module = module
        self.group = group
        self._num_steps = 0
        self._most_grad_bytes = 0
        named = [(name, param) for name, param in module.named_parameters() if param.requires_grad and param.numel()]
        self._buckets = [self._bucket(params, recipe, number) for number, params in enumerate(_dealt(named))]
        self._pieces = [self._piece(place, bucket) for bucket in self._buckets for place in bucket.places]
        for bucket in self._buckets:
            for place in bucket.places:
                place.param.register_post_accumulate_grad_hook(self._collector(place, bucket))

    def begin_micro_batch(self, last: bool) -> None:
        """Nothing: gradients are added up on each rank, and over the ranks after the last."""

    @torch.no_grad()
    def finish_gradients(self) -> torch.Tensor:
        squares: list[torch.Tensor] = []
        held = 0
        for bucket in self._buckets:
            grads = self._grads(bucket)
            for place in bucket.places:
                if place.name not in bucket.written:
                    for _, there in place.pairs(torch.empty(place.param.numel(), device="meta"), grads):
                        there.zero_()
            held += grads.nbytes
        self._most_grad_bytes = max(self._most_grad_bytes, held)
        for bucket in self._buckets:
            grads, bucket.grads = self._grads(bucket), None
            if self.group.world_size == 1:
                bucket.grad = grads[0]
            else:
                bucket.grad = torch.empty_like(grads[0])
                reduce_scatter(bucket.grad, grads.view(-1))
            squares.append(torch.linalg.vector_norm(bucket.grad).square())
            del grads
        total = torch.stack(squares).sum()
        if self.group.world_size > 1:
            dist.all_reduce(total)
        return total.sqrt()

    @torch.no_grad()
    def step(self, lr: float, scale: torch.Tensor) -> None:
        self._num_steps += 1
        for bucket in self._buckets:
            assert bucket.grad is not None, "finish_gradients comes first"
            if bucket.values is not None:
                bucket.stretch.step(bucket.values, bucket.grad, lr, self._num_steps, scale)
            else:
                mine = self._mine(bucket)
                bucket.stretch.step(mine, bucket.grad, lr, self._num_steps, scale)
                self._share(bucket, mine)
        self.drop_gradients()

    def drop_gradients(self) -> None:
        for bucket in self._buckets:
            bucket.grads = bucket.grad = None
            bucket.written.clear()

    def state_dict(self, num_ranks: int = 0) -> dict[str, Any]:
        state = state_of(self._pieces, self.group, num_ranks or self.group.world_size)
        return {**state, "steps": torch.tensor(self._num_steps)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], num_ranks: int = 0) -> None:
        take(self._pieces, self.group, state, num_ranks or self.group.world_size)
        self._num_steps = int(state["steps"])
        for bucket in self._buckets:
            master = bucket.stretch.master
            if bucket.values is not None:
                if master is not None:
                    bucket.values.copy_(master)
            else:
                mine = self._mine(bucket)
                if master is not None:
                    mine.copy_(master)
                self._share(bucket, mine)

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        shapes = {name: param.shape for name, param in self.module.named_parameters()}
        for name, tensor in whole(self._pieces, self.group):
            yield name, tensor.view(shapes[name]) if self.group.rank == 0 else tensor

    def memory(self) -> StateBytes:
        stretches = [bucket.stretch for bucket in self._buckets]
        return StateBytes(
            parameters=bytes_of(self.module),
            gradients=self._most_grad_bytes,
            moments=sum(map(moment_bytes, stretches)),
            masters=sum(stretch.master.nbytes for stretch in stretches if stretch.master is not None),
            average=sum(stretch.average.nbytes for stretch in stretches if stretch.average is not None),
        )

    def _bucket(self, params: list[tuple[str, nn.Parameter]], recipe: Recipe, number: int) -> Bucket:
        places: list[Place] = []
        length = 0
        align = BLOCK if recipe.eight_bits else LINE
        for name, param in params:
            shape = shape_in_rows(param.shape)
            each = num_rows_each(shape[0], self.group.world_size) * row_length(shape)
            places.append(Place(name, param, length, each))
            length += -(-each // align) * align
        first = params[0][1]
        buffer = torch.zeros(self.group.world_size, length, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            for place in places:
                for whole_param, there in place.pairs(place.param.detach().reshape(-1), buffer):
                    there.copy_(whole_param)
        mine = buffer[self.group.rank]
        # Stretches of different ranks draw different random numbers.
        stretch = Stretch(mine, recipe, decays=decays(first), number=number * self.group.world_size + self.group.rank)
        if self.group.world_size > 1:
            return Bucket(places, length, stretch, None)
        for place in places:
            place.param.data = mine[place.begin : place.begin + place.each].view(place.param.shape)
        return Bucket(places, length, stretch, mine)

    def _piece(self, place: Place, bucket: Bucket) -> Piece:
        rows = rows_of(place.shape[0], self.group.world_size, self.group.rank)
        local = place.param.detach().view(place.shape)[rows].view(-1)
        return Piece(place.name, place.shape, local, bucket.stretch, place.begin)

    def _collector(self, place: Place, bucket: Bucket) -> Callable[[torch.Tensor], None]:
        @torch.no_grad()
        def collect(param: torch.Tensor) -> None:
            """A gradient leaves its parameter for the bucket as soon as it is there: of those in the parameter's own
            type only one is in memory, and what adds up does so in float32."""
            assert param.grad is not None
            is_first = place.name not in bucket.written
            for grad, there in place.pairs(param.grad.reshape(-1), self._grads(bucket)):
                if is_first:
                    there.copy_(grad)
                else:
                    there.add_(grad)
            bucket.written.add(place.name)
            param.grad = None

        return collect

    def _grads(self, bucket: Bucket) -> torch.Tensor:
        if bucket.grads is None:
            device = bucket.places[0].param.device
            bucket.grads = torch.empty(self.group.world_size, bucket.length, device=device)
            self._clear_padding(bucket, bucket.grads)
        return bucket.grads

    def _clear_padding(self, bucket: Bucket, buffer: torch.Tensor) -> None:
        ends = [place.begin for place in bucket.places[1:]] + [bucket.length]
        for place, end in zip(bucket.places, ends, strict=True):
            buffer[:, place.begin + place.each : end].zero_()
            num_full, rest = divmod(place.param.numel(), place.each)
            if num_full < self.group.world_size:
                buffer[num_full, place.begin + rest : end].zero_()
                buffer[num_full + 1 :, place.begin : end].zero_()

    def _mine(self, bucket: Bucket) -> torch.Tensor:
        """This rank's stretch of the parameters [length]; with a master, room for it."""
        first = bucket.places[0].param
        mine = torch.zeros(bucket.length, dtype=first.dtype, device=first.device)
        if bucket.stretch.master is None:
            for place in bucket.places:
                rows = rows_of(place.shape[0], self.group.world_size, self.group.rank)
                local = place.param.detach().view(place.shape)[rows].reshape(-1)
                mine[place.begin : place.begin + len(local)] = local
        return mine

    def _share(self, bucket: Bucket, mine: torch.Tensor) -> None:
        buffer = torch.empty(self.group.world_size, bucket.length, dtype=mine.dtype, device=mine.device)
        all_gather(buffer.view(-1), mine)
        for place in bucket.places:
            for whole_param, there in place.pairs(place.param.detach().view(-1), buffer):
                whole_param.copy_(there)


def _dealt(named: list[tuple[str, nn.Parameter]]) -> list[list[tuple[str, nn.Parameter]]]:
    """What may share a bucket: one type, on one device, with weight decay or without."""
    kinds: dict[tuple[torch.dtype, torch.device, bool], list[list[tuple[str, nn.Parameter]]]] = {}
    for name, param in named:
        buckets = kinds.setdefault((param.dtype, param.device, decays(param)), [])
        fits = buckets and sum(other.numel() for _, other in buckets[-1]) + param.numel() <= BUCKET
        if not fits:
            buckets.append([])
        buckets[-1].append((name, param))
    return [bucket for buckets in kinds.values() for bucket in buckets]
