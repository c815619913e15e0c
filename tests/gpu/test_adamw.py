"""Steps of AdamW against the reference in float64.

Tolerance: each step computes in float32, so the moments are off by some units in their last place and the parameter by
that of a step; a parameter in a half type is rounded once a step. In eight bits a share that lies on a border may be
given either code, so codes are compared by what they stand for. A first moment may be a difference of much larger
terms; so beside what is relative there is an error of 3e-8, a unit of such terms.
"""

from __future__ import annotations

import pytest
import torch

from callboard.kernels import reference_optim
from callboard.kernels.adamw import Hyper, new_moments
from callboard.kernels.blockwise8 import Blockwise8, dynamic_map
from callboard.kernels.gpu import adamw

HYPER = Hyper(lr=0.01, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)


def wide_moments(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return first.double(), second.double()


@pytest.mark.parametrize("shape", [(1,), (255,), (3, 400), (5000,), (0,)])
@pytest.mark.parametrize("with_master", [False, True])
def test_steps_in_float32(shape: tuple[int, ...], with_master: bool, device: torch.device, dtype: torch.dtype) -> None:
    param = torch.randn(shape, device=device).to(dtype)
    master = param.float() if with_master else None
    first, second = new_moments(param)
    assert isinstance(first, torch.Tensor)
    assert isinstance(second, torch.Tensor)
    scale = torch.tensor(0.25, device=device)
    for step in range(1, 4):
        grad = torch.randn(shape, device=device).to(dtype)
        expected = (param if master is None else master).double()
        wide = wide_moments(first, second)
        reference_optim.adamw_step(expected, grad.double(), wide[0], wide[1], step, HYPER, grad_scale=scale.double())
        adamw.adamw_step(param, grad, first, second, step, HYPER, master, scale)
        unit = torch.finfo(torch.float32 if with_master else dtype).eps
        kept = param if master is None else master
        torch.testing.assert_close(kept.double(), expected, rtol=unit, atol=2e-7)
        torch.testing.assert_close(first.double(), wide[0], rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(second.double(), wide[1], rtol=1e-6, atol=1e-9)
        if master is not None:
            assert torch.equal(param, master.to(dtype))


@pytest.mark.parametrize("num", [1, 256, 1000, 2049])
def test_steps_with_moments_in_eight_bits(num: int, device: torch.device, dtype: torch.dtype) -> None:
    param = torch.randn(num, device=device).to(dtype)
    first, second = new_moments(param, eight_bits=True)
    assert isinstance(first, Blockwise8)
    assert isinstance(second, Blockwise8)
    for step in range(1, 4):
        # Blocks whose sizes are decades apart.
        grad = (torch.randn(num, device=device) * 10.0 ** -(torch.arange(num, device=device) // 256 % 4)).to(dtype)
        expected = param.double()
        wide = wide_moments(first.dequantize(), second.dequantize())
        reference_optim.adamw_step(expected, grad.double(), wide[0], wide[1], step, HYPER)
        adamw.adamw_step(param, grad, first, second, step, HYPER)
        torch.testing.assert_close(param.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-6)
        for moment, exact in ((first, wide[0]), (second, wide[1])):
            rounded = Blockwise8.zeros(num, signed=moment.signed)
            reference_optim.keep(rounded, exact.cpu())
            torch.testing.assert_close(moment.scales.cpu(), rounded.scales, rtol=1e-6, atol=3e-8)
            # At a border the two nearest values are as far: no value is further off than the reference's own.
            scales = rounded.scales.double().repeat_interleave(256)[:num]
            distance = (moment.dequantize().double().cpu() - exact.cpu()).abs()
            nearest = (reference_optim.values_of(rounded, exact.cpu()) - exact.cpu()).abs()
            assert (distance <= nearest + 2e-6 * scales + 3e-8).all()


def test_a_block_of_zeros_stays_zero(device: torch.device) -> None:
    param = torch.ones(600, device=device)
    first, second = new_moments(param, eight_bits=True)
    assert isinstance(first, Blockwise8)
    grad = torch.zeros(600, device=device)
    grad[300] = 1.0
    adamw.adamw_step(param, grad, first, second, 1, Hyper(lr=0.1, weight_decay=0.0))
    assert first.scales[0].item() == first.scales[2].item() == 0.0
    assert (dynamic_map(True)[first.codes.int().cpu()] == 0).sum() == 599
    assert (param == 1).sum() == 599


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    param, grad = torch.ones(8, device=device), torch.ones(8, device=device)
    first, second = new_moments(param)
    packed, _ = new_moments(param, eight_bits=True)
    with pytest.raises(ValueError, match="grad has the shape"):
        adamw.adamw_step(param, grad[:4], first, second, 1, HYPER)
    with pytest.raises(ValueError, match="the other is not"):
        adamw.adamw_step(param, grad, packed, second, 1, HYPER)
    with pytest.raises(ValueError, match="the second moment is of the signed map"):
        adamw.adamw_step(param, grad, packed, packed, 1, HYPER)
    with pytest.raises(ValueError, match="master is"):
        adamw.adamw_step(param, grad, first, second, 1, HYPER, param.half())
    with pytest.raises(ValueError, match="the first is 1"):
        adamw.adamw_step(param, grad, first, second, 0, HYPER)
    with pytest.raises(ValueError, match="param is float64"):
        adamw.adamw_step(param.double(), grad.double(), first, second, 1, HYPER)
