"""W8A8 products, in int8 and float8, and W8A16 against float64 products of the same codes.

Tolerances: sums of int8 are exact, so a result is rounded some times in float32 (its scales, parts, the bias) and once
to its type. In float8 and with inputs as they are sums are of float32; those of float8 on a card keep 13 bits of the
largest term of a step at least.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from callboard.kernels import channels, ops_linear
from callboard.kernels.channels import FP8, MAX_FP8, MAX_INT8, ChannelInt8, Fp8Weight
from callboard.kernels.gpu import eight_bits, launch, linear_fp8
from callboard.kernels.gpu import product_tiles as tiles
from callboard.kernels.gpu.linear_int8 import linear_int8, linear_int8_a16
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat

FLOAT32 = torch.finfo(torch.float32).eps
SUM_ROUNDINGS = 16
FP8_UNIT = 2.0**-13

SHAPES = [(1, 5, 16), (2, 17, 100), (3, 6, 1030), (4, 2, 2064), (1, 3, 1), (6, 33, 48), (70, 9, 200), (130, 65, 64)]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN, or 85 among codes of int8."""
    empty = torch.empty

    def poisoned(*size: int, **options: object) -> torch.Tensor:
        made = empty(*size, **options)  # type: ignore[call-overload]
        return made.fill_(float("nan") if made.is_floating_point() else 85)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(params=["int8", "fp8"])
def kind(request: pytest.FixtureRequest, device: torch.device) -> str:
    if request.param == "fp8" and (why := linear_fp8.unavailable(device)):
        pytest.skip(why)
    return request.param


def inputs(num_tokens: int, num_in: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Rows that do not follow each other in memory, of different sizes, some of zeros."""
    x = torch.randn(num_tokens, num_in + 8, device=device) * torch.rand(num_tokens, 1, device=device) * 10
    if num_tokens > 2:
        x[1] = 0
    return x.to(dtype)[:, :num_in]


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, terms: torch.Tensor, dtype: torch.dtype, unit: float
) -> None:
    assert actual.dtype == dtype
    finfo = torch.finfo(dtype)
    bound = finfo.eps * expected.abs() + unit * terms + finfo.eps * finfo.smallest_normal
    error = (actual.double() - expected).abs()
    assert bool((error <= bound).all()), f"off by up to {(error / bound).max():.3g} times the bound"


@pytest.mark.parametrize(("num_tokens", "num_out", "num_in"), SHAPES)
def test_inputs_are_rounded_to_the_codes_of_the_reference(
    num_tokens: int, num_out: int, num_in: int, kind: str, dtype: torch.dtype, device: torch.device
) -> None:
    x = inputs(num_tokens, num_in, dtype, device)
    target, largest = (torch.int8, MAX_INT8) if kind == "int8" else (FP8, MAX_FP8)
    codes, scales = eight_bits.quantize_rows(x, target, largest)
    expected_codes, expected_scales = channels.quantize_rows(x.cpu(), target, largest)
    assert torch.equal(codes.cpu().float(), expected_codes.float())
    assert torch.equal(scales.cpu(), expected_scales)


@pytest.mark.parametrize(("num_tokens", "num_out", "num_in"), SHAPES)
def test_rounded_inputs_times_codes(
    num_tokens: int, num_out: int, num_in: int, kind: str, dtype: torch.dtype, device: torch.device
) -> None:
    x = inputs(num_tokens, num_in, dtype, device)
    bias = torch.randn(num_out, device=device).to(dtype)
    weight = (ChannelInt8 if kind == "int8" else Fp8Weight).from_float(torch.randn(num_out, num_in)).to(device)
    actual = ops_linear.linear(x, weight, bias)
    codes, scales = channels.quantize_rows(x.cpu(), weight.code_dtype, weight.largest)
    rounded = (codes.double() * scales.double()[:, None]).to(device)
    values = weight.dequantize(torch.float64)
    expected = rounded @ values.T + bias.double()
    terms = rounded.abs() @ values.abs().T + bias.double().abs()
    exact = kind == "int8" or launch.interpreted()
    assert_close(actual, expected, terms, dtype, SUM_ROUNDINGS * FLOAT32 if exact else FP8_UNIT)


@pytest.mark.parametrize(("num_tokens", "num_out", "num_in"), SHAPES)
def test_inputs_as_they_are_times_int8(
    num_tokens: int, num_out: int, num_in: int, dtype: torch.dtype, device: torch.device
) -> None:
    x = inputs(num_tokens, num_in, dtype, device)
    weight = QuantizedWeight.from_float(torch.randn(num_out, num_in), WeightFormat.INT8).to(device)
    values = weight.dequantize(torch.float64)
    terms = x.double().abs() @ values.abs().T
    actual = ops_linear.linear(x, weight)
    assert_close(actual, x.double() @ values.T, terms, dtype, SUM_ROUNDINGS * FLOAT32)


@pytest.mark.parametrize("num_splits", [2, 3, 7])
@pytest.mark.parametrize("few", [True, False])
def test_divided_sums_are_the_same_every_time(few: bool, num_splits: int, kind: str, device: torch.device) -> None:
    x = inputs(2, 500, torch.float32, device)
    bias = torch.randn(6, device=device)
    cut = tiles.Tiles(2, 4, 64, num_splits, 1, few=True) if few else tiles.Tiles(16, 16, 32, num_splits, 4, few=False)
    weight = (ChannelInt8 if kind == "int8" else Fp8Weight).from_float(torch.randn(6, 500)).to(device)

    def product() -> torch.Tensor:
        if isinstance(weight, ChannelInt8):
            return linear_int8(x, weight, bias, tiles=cut)
        return linear_fp8.linear_fp8(x, weight, bias, tiles=cut)

    actual = product()
    codes, scales = channels.quantize_rows(x.cpu(), weight.code_dtype, weight.largest)
    rounded = (codes.double() * scales.double()[:, None]).to(device)
    values = weight.dequantize(torch.float64)
    terms = rounded.abs() @ values.abs().T + bias.double().abs()
    exact = kind == "int8" or launch.interpreted()
    unit = SUM_ROUNDINGS * FLOAT32 if exact else FP8_UNIT
    assert_close(actual, rounded @ values.T + bias.double(), terms, torch.float32, unit)
    assert torch.equal(actual, product())


def test_whole_sums_are_exact(device: torch.device) -> None:
    """The largest sums: all products have one sign, and float32 could not hold them."""
    num_in = 4096
    weight = ChannelInt8(torch.full((3, num_in), -128, dtype=torch.int8), torch.ones(3)).to(device)
    x = torch.full((6, num_in), 127.0, device=device)
    x[:, -1] = 126.0
    expected = float(-128 * (127 * (num_in - 1) + 126))
    for num_tokens in (1, 6):
        actual = linear_int8(x[:num_tokens], weight)
        assert actual.tolist() == [[torch.tensor(expected).float().item()] * 3] * num_tokens


def test_no_tokens(kind: str, device: torch.device) -> None:
    weight = (ChannelInt8 if kind == "int8" else Fp8Weight).from_float(torch.randn(6, 32)).to(device)
    assert ops_linear.linear(inputs(0, 32, torch.float32, device), weight).shape == (0, 6)


def test_float8_on_a_card_without_it_names_the_capability(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_fp8, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    weight = Fp8Weight.from_float(torch.randn(6, 32)).to(device)
    with pytest.raises(ValueError, match=r"a card has compute capability 8\.6; products in float8 need 8\.9"):
        ops_linear.linear(inputs(2, 32, torch.float32, device), weight)


def test_what_the_kernels_do_not_take_is_named(device: torch.device) -> None:
    weight = ChannelInt8.from_float(torch.randn(6, 32)).to(device)
    engine = QuantizedWeight.from_float(torch.randn(6, 32), WeightFormat.INT4).to(device)
    x = torch.randn(3, 32, device=device)
    wide = ChannelInt8(torch.ones(1, 140_000, dtype=torch.int8), torch.ones(1)).to(device)
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "x has the shape": lambda: linear_int8(x[:, 1:], weight),
        "x is float64": lambda: linear_int8(x.double(), weight),
        "bias has 7 values": lambda: linear_int8(x, weight, torch.zeros(7, device=device)),
        "weight is in int4": lambda: linear_int8_a16(x, engine),
        "do not fit 32 bits": lambda: linear_int8(torch.ones(1, 140_000, device=device), wide),
        "weight.codes is on meta": lambda: linear_int8(x, ChannelInt8.from_float(torch.randn(6, 32)).to("meta")),
        "gradient": lambda: ops_linear.linear(x.clone().requires_grad_(), weight),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_gradient_of_inputs_that_are_not_rounded(device: torch.device) -> None:
    weight = QuantizedWeight.from_float(torch.randn(9, 100), WeightFormat.INT8).to(device)
    x = torch.randn(4, 100, device=device, requires_grad=True)
    gradient = torch.randn(4, 9, device=device)
    ops_linear.linear(x, weight).backward(gradient)
    assert x.grad is not None
    torch.testing.assert_close(
        x.grad.double(), gradient.double() @ weight.dequantize(torch.float64), rtol=1e-4, atol=1e-4
    )
