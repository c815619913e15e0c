"""A linear layer with a frozen weight and a trained low-rank product beside it: y = x W' + scale (x A') B'.

Left to autograd the low-rank side saves its scaled result and input again, and makes passes over whole activations for
the scale and the sum. Here the forward pass saves x (which the layer before saves anyway) and the rank-sized x A', adds
the second product into the first one's result, and the backward pass makes each gradient in the pass that reads what it
is of. A weight in few bits is unpacked in each direction and let go.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable


class Dequantizes(Protocol):
    """A frozen matrix [num_out, num_in] in any format: `QuantizedWeight`, `GroupedInt4`, others'."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def dequantize(self, dtype: torch.dtype) -> torch.Tensor: ...


FrozenWeight = torch.Tensor | Dequantizes


@dataclass(frozen=True)
class LoraPart:
    """One of the layers that share an input; as `ops_training.lora_linear` takes them."""

    weight: FrozenWeight
    a: torch.Tensor
    b: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None


class Steps(Protocol):
    """The parts in which paths differ: x, dx [num_tokens, num_in], y, dy [num_tokens, num_out], low, dlow [num_tokens,
    rank], a [rank, num_in], b [num_out, rank], all of one type; gradients of a and b are sums in at least float32."""

    def add_low_rank(self, y: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        """y += scale * low @ b.T"""
        ...

    def output_side(
        self, dy: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """dlow = scale * dy @ b and db = scale * dy.T @ low, from one pass over dy."""
        ...

    def input_side(self, dx: torch.Tensor | None, x: torch.Tensor, dlow: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """dx += dlow @ a where there is a dx; returns da = dlow.T @ x."""
        ...


class TorchSteps:
    """`Steps` in torch, on any device."""

    def add_low_rank(self, y: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        y.addmm_(low, b.T, alpha=scale)

    def output_side(
        self, dy: torch.Tensor, low: torch.Tensor, b: torch.Tensor, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return (dy @ b).mul_(scale), (dy.T @ low).mul_(scale)

    def input_side(self, dx: torch.Tensor | None, x: torch.Tensor, dlow: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        if dx is not None:
            dx.addmm_(dlow, a)
        return dlow.T @ x


def lora_linear(
    x: torch.Tensor,
    weight: FrozenWeight,
    a: torch.Tensor,
    b: torch.Tensor,
    scale: float,
    bias: torch.Tensor | None,
    steps: Steps,
) -> torch.Tensor:
    """See `ops_training.lora_linear`."""
    num_out, num_in = weight.shape
    check(x, LoraPart(weight, a, b, scale, bias))
    flat = x.reshape(-1, num_in)
    y = _LoraLinear.apply(flat, weight, a, b, scale, bias, steps)
    assert isinstance(y, torch.Tensor)
    return y.view(*x.shape[:-1], num_out)


def check(x: torch.Tensor, part: LoraPart) -> None:
    """ValueError for what does not go together."""
    weight, a, b, bias = part.weight, part.a, part.b, part.bias
    num_out, num_in = weight.shape
    if x.shape[-1] != num_in:
        raise ValueError(f"x has rows of {x.shape[-1]}, the weight takes {num_in}")
    if a.ndim != 2 or a.shape[1] != num_in or b.shape != (num_out, a.shape[0]):
        raise ValueError(
            f"a {tuple(a.shape)} and b {tuple(b.shape)} do not go with a weight of {(num_out, num_in)}: "
            "[rank, num_in] and [num_out, rank] are needed"
        )
    if isinstance(weight, torch.Tensor) and (weight.requires_grad or weight.dtype != x.dtype):
        raise ValueError(
            f"the weight is frozen and of x's type {x.dtype}; this is {weight.dtype}"
            + (" and requires a gradient" if weight.requires_grad else "")
        )
    if bias is not None and (bias.requires_grad or bias.shape != (num_out,) or bias.dtype != x.dtype):
        raise ValueError(f"the bias is frozen, of x's type {x.dtype} and of {num_out} values")


def dense(weight: FrozenWeight, dtype: torch.dtype) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.dequantize(dtype)


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: FrozenWeight,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
        bias: torch.Tensor | None,
        steps: Steps,
    ) -> torch.Tensor:
        y = torch.nn.functional.linear(x, dense(weight, x.dtype), bias)
        low = x @ a.to(x.dtype).T
        steps.add_low_rank(y, low, b.to(x.dtype), scale)
        is_tensor = isinstance(weight, torch.Tensor)
        ctx.save_for_backward(x, low, a, b, weight if is_tensor else None)
        ctx.packed = None if is_tensor else weight
        ctx.scale, ctx.steps = scale, steps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore
        x, low, a, b, weight = ctx.saved_tensors
        steps: Steps = ctx.steps
        dy = grad_outputs[0].contiguous()
        dlow, db = steps.output_side(dy, low, b.to(x.dtype), ctx.scale)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = dy @ dense(ctx.packed if weight is None else weight, x.dtype)
        da = steps.input_side(dx, x, dlow, a.to(x.dtype))
        return dx, None, da.to(a.dtype), db.to(b.dtype), None, None, None
