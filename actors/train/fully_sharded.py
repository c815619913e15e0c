"""ZeRO-2 and 3 by PyTorch's FSDP2: each rank keeps its rows of every parameter and steps them; the whole parameters of
a layer are there while it computes.

The rows are float32 where the parameters are trained in 16 bits, and so are the master. At stage 3 a layer's whole
parameters are given up after its forward pass and gathered again for its backward pass; at stage 2 they stay.

The model is to be called by `module(...)`: its hooks gather what lies outside the layers, embeddings and head, which
are then there until the backward pass is over. Every rank calls it equally often, without gradients too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ...kernels.nf4 import Nf4Weight
from .group import Group
from .memory import StateBytes, bytes_of
from .optimizer import Recipe, Stretch, decays, moment_bytes
from .pieces import Piece, state_of, take, whole

# Of the bytes of all parameters: where the whole float32 gradients are no more, as an adapter's, each rank keeps them
# over its micro-batches and they are added up over the ranks once.
LITTLE = 1 / 8


class FullySharded:
    def __init__(self, module: nn.Module, group: Group, recipe: Recipe, *, keeps_whole: bool) -> None:
        """`keeps_whole`: stage 2."""
        assert group.mesh is not None, "a group of one has nothing to share"
        self.module = module
        self.group = group
        self._keeps_whole = keeps_whole
        self._num_steps = 0
        self._is_first_micro_batch = True
        self._most_grad_bytes = 0
        trained = [param for param in module.parameters() if param.requires_grad]
        grad_bytes = sum(4 * param.numel() for param in trained)
        self._reduces_once = grad_bytes <= LITTLE * bytes_of(module)
        self._parts = _shard(module, group, recipe, keeps_whole=keeps_whole)
        self._params = {name: param for name, param in module.named_parameters() if param.requires_grad}
        self._stretches: dict[str, Stretch] = {}
        self._pieces: list[Piece] = []
        for number, (name, param) in enumerate(self._params.items()):
            local = _local(param).view(-1)
            stretch = Stretch(local, recipe, decays=decays(param), number=number * group.world_size + group.rank)
            self._stretches[name] = stretch
            self._pieces.append(Piece(name, param.shape, local, stretch, 0))
        # Gradients of 16-bit rows, which are in 16 bits themselves, are added up here.
        self._sums: dict[str, torch.Tensor] = {}
        self._gathered = 0
        module.register_forward_hook(self._see_gathered)

    def begin_micro_batch(self, last: bool) -> None:
        if not self._is_first_micro_batch:
            self._collect()
        self._is_first_micro_batch = False
        root = self._parts[-1]
        if self._reduces_once:
            root.set_requires_gradient_sync(last)
        if self._keeps_whole:
            root.set_reshard_after_backward(last)

    @torch.no_grad()
    def finish_gradients(self) -> torch.Tensor:
        self._is_first_micro_batch = True
        self._collect()
        grads = [self._grad(name) for name in self._params]
        self._most_grad_bytes = max(self._most_grad_bytes, sum(grad.nbytes for grad in grads))
        total = torch.stack([torch.linalg.vector_norm(grad, dtype=torch.float32).square() for grad in grads]).sum()
        dist.all_reduce(total)
        return total.sqrt().to(self.group.device)

    @torch.no_grad()
    def step(self, lr: float, scale: torch.Tensor) -> None:
        self._num_steps += 1
        for name, param in self._params.items():
            self._stretches[name].step(
                _local(param).view(-1),
                self._grad(name).reshape(-1),
                lr,
                self._num_steps,
                scale.to(_local(param).device),
            )
        self.drop_gradients()

    def drop_gradients(self) -> None:
        self._sums.clear()
        for param in self._params.values():
            param.grad = None

    def state_dict(self, num_ranks: int = 0) -> dict[str, Any]:
        state = state_of(self._pieces, self.group, num_ranks or self.group.world_size)
        return {**state, "steps": torch.tensor(self._num_steps)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any], num_ranks: int = 0) -> None:
        take(self._pieces, self.group, state, num_ranks or self.group.world_size)
        self._num_steps = int(state["steps"])
        for part in self._parts:
            part.reshard()  # what is whole now is of the rows as they were

    def export(self) -> Iterator[tuple[str, torch.Tensor]]:
        return whole(self._pieces, self.group)

    def memory(self) -> StateBytes:
        stretches = self._stretches.values()
        for part in self._parts:
            part.reshard()
        return StateBytes(
            parameters=bytes_of(self.module),
            gradients=self._most_grad_bytes,
            moments=sum(map(moment_bytes, stretches)),
            masters=0,
            average=sum(stretch.average.nbytes for stretch in stretches if stretch.average is not None),
            gathered=self._gathered if self._keeps_whole else 0,
        )

    def _grad(self, name: str) -> torch.Tensor:
        param = self._params[name]
        if name in self._sums:
            return self._sums[name]
        return torch.zeros_like(_local(param)) if param.grad is None else _local(param.grad)

    @torch.no_grad()
    def _collect(self) -> None:
        for name, param in self._params.items():
            if param.grad is None or param.dtype == torch.float32:
                continue
            grad = _local(param.grad)
            if name in self._sums:
                self._sums[name] += grad
            else:
                self._sums[name] = grad.float()
            param.grad = None

    def _see_gathered(self, *_: object) -> None:
        """After a forward pass: how much of the parameters is whole."""
        params = [param for param in self.module.parameters() if not isinstance(param, DTensor)]
        self._gathered = max(self._gathered, sum(param.nbytes for param in params))


def _local(tensor: torch.Tensor) -> torch.Tensor:
    assert isinstance(tensor, DTensor)
    with torch.no_grad():
        return tensor.to_local()


def _shard(module: nn.Module, group: Group, recipe: Recipe, *, keeps_whole: bool) -> list[FSDPModule]:
    """The modules that are now gathered by themselves, the root the last."""
    for weight in [part for part in module.modules() if isinstance(part, Nf4Weight)]:
        _codes_as_parameters(weight)
    offload = CPUOffloadPolicy(pin_memory=group.device.type == "cuda") if recipe.offload else OffloadPolicy()
    roots = [*layers(module), module]
    parts: list[FSDPModule] = []
    for root in [nested for outer in roots for nested in (*_wide_within(outer), outer)]:
        if isinstance(root, FSDPModule):
            continue
        trained = [param for param in root.parameters() if param.requires_grad and not isinstance(param, DTensor)]
        short = {param.dtype for param in trained if param.dtype.itemsize < 4}
        # FSDP wants the rows that are trained in one type. One layer at a time is whole in float32.
        compute = None
        if short and not recipe.stochastic_rounding:
            (compute,) = short
            for param in trained:
                param.data = param.data.float()
        # Gradients are added up in float32 whatever their type. Inputs keep their type, as they do unsharded.
        policy = MixedPrecisionPolicy(compute, torch.float32, cast_forward_inputs=False)
        part = fully_shard(
            root,
            mesh=group.mesh,
            # What the root itself holds begins and ends a pass: nothing would be won by gathering it twice.
            reshard_after_forward=not keeps_whole and root is not module,
            mp_policy=policy,
            offload_policy=offload,
        )
        assert isinstance(part, FSDPModule)
        # A sum over the ranks: the loss is divided by the whole step's count already.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
        parts.append(part)
    parts[-1].set_reduce_scatter_unused_params(True)
    return parts


def layers(module: nn.Module) -> list[nn.Module]:
    """What is gathered at a time: the members of outermost lists of modules, as decoder layers are."""
    found: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            found += [member for member in child if next(member.parameters(), None) is not None]
        else:
            found += layers(child)
    return found


def _wide_within(root: nn.Module) -> list[nn.Module]:
    """Modules of float32 that is trained beside 16 bits that are: they keep their type, gathered by themselves."""
    inner = {id(param) for layer in layers(root) for param in layer.parameters()}
    trained = [param for param in root.parameters() if param.requires_grad and id(param) not in inner]
    if len({param.dtype.itemsize < 4 for param in trained}) < 2:
        return []
    ids = {id(param) for param in trained}
    found: list[nn.Module] = []
    for part in root.modules():
        own = [param for param in part.parameters(recurse=False) if param.requires_grad and id(param) in ids]
        if part is not root and own and all(param.dtype.itemsize >= 4 for param in own):
            found.append(part)
    return found


def _codes_as_parameters(weight: Nf4Weight) -> None:
    """FSDP shares parameters; a frozen matrix in four bits is as well shared."""
    for name in ("codes", "absmax"):
        buffer = weight.get_buffer(name)
        delattr(weight, name)
        weight.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
