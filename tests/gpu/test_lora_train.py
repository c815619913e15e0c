"""The trained low-rank layer and its gradients against autograd's through the reference in float64.

Tolerance: in half types x A' and its gradient are rounded to the type, as autograd rounds them too, and every result
once; relative to results of the size of some tens.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from callboard.kernels import reference_losses
from callboard.kernels.gpu import lora_train
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


TOLERANCE = {torch.float32: 3e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}


def inputs(
    num_tokens: int, num_in: int, num_out: int, rank: int, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(num_tokens, num_in, device=device).to(dtype).requires_grad_(),
        "a": (torch.randn(rank, num_in, device=device) / num_in**0.5).to(dtype).requires_grad_(),
        "b": torch.randn(num_out, rank, device=device).to(dtype).requires_grad_(),
    }


@pytest.mark.parametrize(
    ("num_tokens", "num_in", "num_out", "rank"),
    [(1, 8, 8, 1), (33, 70, 150, 8), (300, 40, 24, 20), (40, 70, 300, 50), (0, 8, 8, 4)],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_results_and_gradients(
    num_tokens: int, num_in: int, num_out: int, rank: int, with_bias: bool, device: torch.device, dtype: torch.dtype
) -> None:
    given = inputs(num_tokens, num_in, num_out, rank, device, dtype)
    weight = (torch.randn(num_out, num_in, device=device) / num_in**0.5).to(dtype)
    bias = torch.randn(num_out, device=device).to(dtype) if with_bias else None
    y = lora_train.lora_linear(given["x"], weight, given["a"], given["b"], 0.5, bias)
    dy = torch.randn_like(y) / max(1, num_tokens) ** 0.5
    y.backward(dy)
    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    wide_bias = None if bias is None else bias.double()
    expected = reference_losses.lora_linear(wide["x"], weight.double(), wide["a"], wide["b"], 0.5, wide_bias)
    expected.backward(dy.double())
    assert_close = partial(torch.testing.assert_close, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert_close(y.double(), expected)
    for name, value in given.items():
        assert value.grad is not None
        assert wide[name].grad is not None
        assert_close(value.grad.double(), wide[name].grad)


def test_a_weight_in_few_bits_a_batch_of_sequences_and_wider_adapters(device: torch.device) -> None:
    """The way of QLoRA: half-precision activations, an unpacked weight, adapters in float32."""
    given = inputs(6, 64, 32, 4, device, torch.float16)
    given["a"], given["b"] = (given[name].detach().float().requires_grad_() for name in ("a", "b"))
    packed = QuantizedWeight.from_float(torch.randn(32, 64, device=device) / 8, WeightFormat.NF4)
    y = lora_train.lora_linear(given["x"].view(2, 3, 64), packed, given["a"], given["b"], 2.0)
    assert y.shape == (2, 3, 32)
    y.backward(torch.ones_like(y))
    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    expected = reference_losses.lora_linear(wide["x"], packed.dequantize().double(), wide["a"], wide["b"], 2.0)
    expected.backward(torch.ones_like(expected))
    torch.testing.assert_close(y.flatten(0, 1).double(), expected, rtol=2e-2, atol=2e-2)
    for name, value in given.items():
        assert value.grad is not None
        assert value.grad.dtype == value.dtype
        torch.testing.assert_close(value.grad.double(), wide[name].grad, rtol=2e-2, atol=3e-2)


def test_an_input_that_needs_no_gradient_gets_none(device: torch.device) -> None:
    given = inputs(5, 16, 16, 2, device, torch.float32)
    x = given["x"].detach()
    lora_train.lora_linear(x, torch.randn(16, 16, device=device), given["a"], given["b"], 1.0).sum().backward()
    assert x.grad is None
    assert given["a"].grad is not None


def test_a_backward_pass_repeats_bit_for_bit(device: torch.device) -> None:
    given = inputs(260, 130, 140, 4, device, torch.float32)
    weight = torch.randn(140, 130, device=device)
    grads = [
        torch.autograd.grad(
            lora_train.lora_linear(given["x"], weight, given["a"], given["b"], 1.0).square().sum(), list(given.values())
        )
        for _ in range(2)
    ]
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    given = inputs(3, 8, 6, 2, device, torch.float32)
    x, a, b = given.values()
    weight = torch.zeros(6, 8, device=device)
    with pytest.raises(ValueError, match="the weight takes 8"):
        lora_train.lora_linear(x[:, :7], weight, a, b, 1.0)
    with pytest.raises(ValueError, match="do not go with a weight"):
        lora_train.lora_linear(x, weight, a, b[:, :1], 1.0)
    with pytest.raises(ValueError, match="requires a gradient"):
        lora_train.lora_linear(x, weight.clone().requires_grad_(), a, b, 1.0)
    with pytest.raises(ValueError, match="at most 128"):
        lora_train.lora_linear(x, weight, torch.zeros(200, 8, device=device), torch.zeros(6, 200, device=device), 1.0)
    with pytest.raises(ValueError, match="the bias is frozen"):
        lora_train.lora_linear(x, weight, a, b, 1.0, torch.zeros(5, device=device))
