"""Layers with LoRA that share their input: the native path and torch's against the reference in float64.

Tolerance: in bfloat16 a result is rounded a few times, to 8 bits of the largest number there is; sums are in float32.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_paths import path

from callboard.kernels import native_lora, native_training, ops_training, reference_losses
from callboard.kernels.lora_train import LoraPart
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat

__all__ = ["path"]  # a fixture
UNITS = {torch.float32: 1e-5, torch.bfloat16: 1.5e-2}


def layers(widths: list[int], num_in: int, ranks: list[int], dtype: torch.dtype, *, bias: bool) -> list[LoraPart]:
    return [
        LoraPart(
            (torch.randn(width, num_in) / num_in**0.5).to(dtype),
            (torch.randn(rank, num_in) / num_in**0.5).to(dtype).requires_grad_(),
            (torch.randn(width, rank) / rank**0.5).to(dtype).requires_grad_(),
            0.5 + number,
            torch.randn(width).to(dtype) if bias else None,
        )
        for number, (width, rank) in enumerate(zip(widths, ranks, strict=True))
    ]


def adapters(parts: list[LoraPart]) -> list[torch.Tensor]:
    return [tensor for part in parts for tensor in (part.a, part.b)]


def reference(x: torch.Tensor, part: LoraPart) -> torch.Tensor:
    assert isinstance(part.weight, torch.Tensor)
    bias = None if part.bias is None else part.bias.double()
    return reference_losses.lora_linear(x, part.weight.double(), part.a, part.b, part.scale, bias)


def widened(part: LoraPart) -> LoraPart:
    a, b = (adapter.detach().double().requires_grad_() for adapter in (part.a, part.b))
    return LoraPart(part.weight, a, b, part.scale, part.bias)


def check(x: torch.Tensor, parts: list[LoraPart]) -> None:
    wide, wide_parts = x.detach().double().requires_grad_(), [widened(part) for part in parts]
    outs = ops_training.lora_linears(x, parts)
    expected = [reference(wide, part) for part in wide_parts]
    grads = [torch.randn(y.shape).to(x.dtype) for y in outs]
    found = torch.autograd.grad(outs, [x, *adapters(parts)], grads)
    there = torch.autograd.grad(expected, [wide, *adapters(wide_parts)], [grad.double() for grad in grads])
    for here, wanted in zip((*outs, *found), (*expected, *there), strict=True):
        assert here.dtype == x.dtype
        largest = float(wanted.detach().abs().amax()) if wanted.numel() else 0.0
        torch.testing.assert_close(here.double(), wanted, rtol=0, atol=UNITS[x.dtype] * max(1.0, largest))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 300),
    st.sampled_from([32, 96, 160]),
    st.lists(st.tuples(st.sampled_from([32, 64, 96, 224]), st.integers(1, 40)), min_size=1, max_size=3),
    st.sampled_from(list(UNITS)),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_layers_that_share_their_input(
    path: str, rows: int, num_in: int, sizes: list[tuple[int, int]], dtype: torch.dtype, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    parts = layers([width for width, _ in sizes], num_in, [rank for _, rank in sizes], dtype, bias=bias)
    x = torch.randn(rows, num_in).to(dtype).requires_grad_()
    assert native_lora.takes(x, parts) == (path != "torch")
    check(x, parts)


def test_a_weight_in_few_bits_and_an_adapter_in_a_wider_type(path: str) -> None:
    torch.manual_seed(0)
    packed = QuantizedWeight.from_float(torch.randn(96, 64) / 8, WeightFormat.INT8)
    a, b = (torch.randn(16, 64) / 8).requires_grad_(), (torch.randn(96, 16) / 4).requires_grad_()
    x = torch.randn(2, 70, 64).bfloat16().requires_grad_()
    (y,) = ops_training.lora_linears(x, [LoraPart(packed, a, b, 2.0)])
    grad = torch.randn(y.shape).bfloat16()
    found = torch.autograd.grad(y, (x, a, b), grad)
    wide = [value.detach().double().requires_grad_() for value in (x, a, b)]
    dense = packed.dequantize(torch.bfloat16).double()
    there = torch.autograd.grad(
        reference_losses.lora_linear(wide[0], dense, wide[1], wide[2], 2.0), wide, grad.double()
    )
    for here, wanted, given_value in zip(found, there, (x, a, b), strict=True):
        assert here.dtype == given_value.dtype
        torch.testing.assert_close(here.double(), wanted, rtol=0, atol=1.5e-2 * float(wanted.abs().amax()))


def test_an_input_that_needs_no_gradient_gets_none(path: str) -> None:
    parts = layers([32, 64], 32, [4, 4], torch.float32, bias=False)
    outs = ops_training.lora_linears(torch.randn(5, 32), parts)
    torch.autograd.backward(outs, [torch.ones_like(y) for y in outs])
    assert all(tensor.grad is not None for tensor in adapters(parts))


def test_only_the_input_and_the_low_side_are_saved(path: str) -> None:
    saved: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    parts = layers([64, 32], 96, [16, 16], torch.float32, bias=False)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops_training.lora_linears(torch.randn(50, 96, requires_grad=True), parts)
    of_tokens = {shape for shape in saved if shape[0] == 50}
    assert of_tokens == ({(50, 96), (50, 16)} if path == "torch" else {(50, 96), (50, 32)})


def test_threads_and_torchs_own_tiles_change_no_bit() -> None:
    """Torch's products set the tiles' shapes too, in the same threads: each finds its own again."""
    if why := native_training.unavailable():
        pytest.skip(why)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            parts = layers([96, 32], 64, [16, 8], torch.bfloat16, bias=False)
            x = torch.randn(700, 64).bfloat16().requires_grad_()
            square = torch.randn(160, 160).bfloat16()
            product = square @ square
            outs = ops_training.lora_linears(x, parts)
            assert torch.equal(square @ square, product)
            grads = torch.autograd.grad(outs, [x, *adapters(parts)], [torch.ones_like(y) for y in outs])
            assert torch.equal(square @ square, product)
            runs.append([*outs, *grads])
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(here, first) for here, first in zip(run, runs[0], strict=True))
