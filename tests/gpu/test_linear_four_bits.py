"""W4A16 and NF4 products against float64 products with what the codes stand for.

Tolerances: with few rows weights are made and summed in float32, where the terms of a word are a code's 15 steps at
most (`steps`), and the result is rounded once. With many rows a weight is rounded to the type of x before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import triton

from callboard.kernels import ops_linear
from callboard.kernels.gpu import four_bits, launch, split, tuning
from callboard.kernels.gpu import product_tiles as tiles
from callboard.kernels.gpu.linear_int4 import linear_int4
from callboard.kernels.gpu.linear_nf4 import linear_nf4
from callboard.kernels.grouped import GroupedInt4
from callboard.kernels.nf4 import Nf4Weight
from callboard.kernels.planar import PlanarInt4, PlanarNf4
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat

linear_int4_module = sys.modules[linear_int4.__module__]  # the package's attribute of that name may be the function
FLOAT32 = torch.finfo(torch.float32).eps
# Roundings of float32 in a sum, in units of all its terms: a tree over threads of chains of eight and steps.
SUM_ROUNDINGS = 16


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""
    empty = torch.empty

    def poisoned(*size: int, **options: object) -> torch.Tensor:
        return empty(*size, **options).fill_(float("nan"))  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "empty", poisoned)


def grouped(num_out: int, num_in: int, group_size: int, kind: str, device: torch.device) -> GroupedInt4:
    """A weight of any codes: symmetric, with whole zeros, or with any and its inputs reordered."""
    codes = torch.randint(0, 256, (num_out, num_in // 2), dtype=torch.uint8)
    scales = (torch.rand(num_out, num_in // group_size) + 0.1).half()
    zeros = torch.full_like(scales, 8) if kind == "symmetric" else torch.randint(0, 16, scales.shape).half()
    order = None
    if kind == "reordered":
        zeros += torch.rand(scales.shape).half()
        order = torch.randperm(num_in)
    return GroupedInt4(codes, scales, zeros, order).to(device)


def inputs(num_tokens: int, num_in: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Rows that do not follow each other in memory."""
    return torch.randn(num_tokens, num_in + 8, device=device).to(dtype)[:, :num_in]


def assert_product(
    actual: torch.Tensor,
    x: torch.Tensor,
    values: torch.Tensor,
    bias: torch.Tensor | None,
    steps: torch.Tensor | float,
    *,
    few: bool,
) -> None:
    """`values` float64 [num_out, num_in]; `steps`: the largest term of float32 beside a value, like `values`."""
    wide = x.double()
    expected = wide @ values.T
    if bias is not None:
        expected += bias.double()
    eps = torch.finfo(x.dtype).eps
    terms = wide.abs() @ (values.abs() + steps).T + 1
    bound = eps * expected.abs() + SUM_ROUNDINGS * FLOAT32 * terms
    if not few:
        bound += eps * (wide.abs() @ values.abs().T)
    assert actual.dtype == x.dtype
    error = (actual.double() - expected).abs()
    assert bool((error <= bound).all()), f"off by up to {(error / bound).max():.3g} times the bound"


SHAPES = [
    (1, 5, 32, 16),
    (2, 17, 96, 48),
    (3, 33, 256, 128),
    (4, 3, 576, 64),
    (1, 9, 1152, 128),
    (5, 7, 50, 50),
    (1, 4, 50, 50),
    (17, 65, 224, 32),
    (64, 20, 128, 128),
    (70, 3, 256, 256),
]


@pytest.mark.parametrize("kind", ["symmetric", "zeros", "reordered"])
@pytest.mark.parametrize(("num_tokens", "num_out", "num_in", "group_size"), SHAPES)
def test_int4_is_the_product_with_what_codes_stand_for(
    num_tokens: int, num_out: int, num_in: int, group_size: int, kind: str, dtype: torch.dtype, device: torch.device
) -> None:
    weight = grouped(num_out, num_in, group_size, kind, device)
    x = inputs(num_tokens, num_in, dtype, device)
    bias = torch.randn(num_out, device=device).to(dtype)
    actual = linear_int4(x, PlanarInt4.from_grouped(weight), bias)
    steps = 16 * float(weight.scales.max())
    few = num_tokens <= tiles.MAX_FEW
    assert_product(actual, x, weight.dequantize(torch.float64), bias, steps, few=few)


@pytest.mark.parametrize(("num_tokens", "num_out", "num_in"), [(1, 6, 64), (4, 33, 320), (7, 5, 576), (40, 66, 128)])
def test_nf4_with_absmax_of_eight_bits(
    num_tokens: int, num_out: int, num_in: int, dtype: torch.dtype, device: torch.device
) -> None:
    weight = Nf4Weight.from_float(torch.randn(num_out, num_in) * torch.rand(num_out, 1)).to(device)
    x = inputs(num_tokens, num_in, dtype, device)
    actual = linear_nf4(x, PlanarNf4.from_nf4(weight))
    few = num_tokens <= tiles.MAX_FEW
    assert_product(actual, x, weight.dequantize(torch.float64), None, 0, few=few)


@pytest.mark.parametrize("num_tokens", [1, 6])
@pytest.mark.parametrize("num_in", [100, 640])
@pytest.mark.parametrize("format", [WeightFormat.INT4, WeightFormat.NF4])
def test_weights_of_the_cpu_engine(
    num_tokens: int, num_in: int, format: WeightFormat, dtype: torch.dtype, device: torch.device
) -> None:
    weight = QuantizedWeight.from_float(torch.randn(11, num_in), format).to(device)
    x = inputs(num_tokens, num_in, dtype, device)
    placed = ops_linear.place(weight, device)
    assert isinstance(placed, PlanarInt4 | PlanarNf4)
    steps = 8.0 if format is WeightFormat.INT4 else 0
    values = weight.dequantize(torch.float64)
    assert_product(ops_linear.linear(x, placed), x, values, None, steps, few=num_tokens <= tiles.MAX_FEW)


@pytest.mark.parametrize("num_splits", [2, 3, 5])
@pytest.mark.parametrize("few", [True, False])
def test_divided_sums_are_the_same_every_time(few: bool, num_splits: int, device: torch.device) -> None:
    weight = grouped(6, 1280, 128, "zeros", device)
    x = inputs(2, 1280, torch.float32, device)
    bias = torch.randn(6, device=device)
    cut = tiles.Tiles(2, 4, 128, num_splits, 1, few=True) if few else tiles.Tiles(16, 16, 16, num_splits, 4, few=False)
    placed = PlanarInt4.from_grouped(weight)
    actual = linear_int4(x, placed, bias, tiles=cut)
    assert_product(actual, x, weight.dequantize(torch.float64), bias, 16 * float(weight.scales.max()), few=few)
    assert torch.equal(actual, linear_int4(x, placed, bias, tiles=cut))


@pytest.mark.parametrize("num_tokens", [1, 3, 20])
def test_every_way_that_is_tried_computes_the_same(num_tokens: int, device: torch.device) -> None:
    weight = grouped(10, 1280, 128, "zeros", device)
    x = inputs(num_tokens, 1280, torch.float32, device)
    placed = PlanarInt4.from_grouped(weight)
    # As on a card, where sums are divided: under the interpreter there is one processor, and nothing to divide.
    choices = tiles.choices_of_words(triton.next_power_of_2(num_tokens), 10, placed.words.shape[1], 132)
    assert tiles.tiles_of(choices[0]) == tiles.tiles_of_words(
        triton.next_power_of_2(num_tokens), 10, placed.words.shape[1], 132
    )
    assert len({tiles.tiles_of(choice) for choice in choices}) == len(choices) > 1
    for choice in choices:
        actual = linear_int4(x, placed, tiles=tiles.tiles_of(choice))
        few = num_tokens <= tiles.MAX_FEW
        assert_product(actual, x, weight.dequantize(torch.float64), None, 16 * float(weight.scales.max()), few=few)


def test_how_a_product_is_cut_is_asked_of_what_was_tuned(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """For rows of one class, shape and type once; the way that is answered is the way that is taken."""
    asked: list[tuple[str, tuning.Key]] = []
    taken: list[tiles.Tiles | None] = []

    def pick(name: str, key: tuning.Key, configs: Sequence[tuning.Config], run: tuning.Run) -> tuning.Config:
        asked.append((name, key))
        run(configs[0])  # as a search does
        return configs[-1]

    def multiply(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(rest[-1])
        return four_bits.multiply(x, *rest)

    monkeypatch.setattr(tuning, "pick", pick)
    monkeypatch.setattr(linear_int4_module, "multiply", multiply)
    weight = grouped(10, 1280, 128, "zeros", device)
    placed = PlanarInt4.from_grouped(weight)
    for num_tokens in (3, 4):
        x = inputs(num_tokens, 1280, torch.float32, device)
        actual = linear_int4(x, placed)
        assert_product(actual, x, weight.dequantize(torch.float64), None, 16 * float(weight.scales.max()), few=True)
    choices = tiles.choices_of_words(4, 10, placed.words.shape[1], split.num_processors(x.device))
    assert taken == [tiles.tiles_of(choices[0]), tiles.tiles_of(choices[-1])] * 2
    assert len(set(asked)) == 1
    assert asked[0][0] == "linear_int4"
    linear_int4(inputs(5, 1280, torch.float32, device), placed)
    assert len(set(asked)) == 2


@pytest.mark.parametrize("kind", ["symmetric", "zeros", "reordered"])
def test_so_many_rows_that_the_weight_is_written_out(
    kind: str, dtype: torch.dtype, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(four_bits, "DENSE_VALUES", 7 * 160)
    weight = grouped(20, 160, 32, kind, device)
    x = inputs(tiles.MAX_FEW * 150, 160, dtype, device)
    bias = torch.randn(20, device=device).to(dtype)
    actual = linear_int4(x, PlanarInt4.from_grouped(weight), bias)
    # The library may sum parts in the type of x: each rounds the sum once more. Inside it adds one term after the other
    # in float32: up to half an eps for each, in a sum that no order of the terms makes larger than `scale`.
    wide = x.double() @ weight.dequantize(torch.float64).T + bias.double()
    scale = x.double().abs() @ weight.dequantize(torch.float64).abs().T + 16
    bound = 2 * torch.finfo(dtype).eps * (wide.abs() + scale) + 160 / 2 * FLOAT32 * scale
    assert bool(((actual.double() - wide).abs() <= bound).all())


def test_no_tokens(device: torch.device) -> None:
    weight = grouped(6, 64, 32, "zeros", device)
    assert linear_int4(inputs(0, 64, torch.float32, device), PlanarInt4.from_grouped(weight)).shape == (0, 6)


@pytest.mark.parametrize("kind", ["symmetric", "reordered", "nf4"])
def test_gradients_of_inputs_and_bias(kind: str, device: torch.device) -> None:
    if kind == "nf4":
        weight = Nf4Weight.from_float(torch.randn(9, 128)).to(device)
    else:
        weight = grouped(9, 128, 32, kind, device)
    values = weight.dequantize(torch.float64)
    placed = ops_linear.place(weight, device)
    x = torch.randn(2, 3, 128, device=device, requires_grad=True)
    bias = torch.randn(9, device=device, requires_grad=True)
    gradient = torch.randn(2, 3, 9, device=device)
    ops_linear.linear(x, placed, bias).backward(gradient)
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad.double(), gradient.double() @ values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad.double(), gradient.double().sum((0, 1)), rtol=1e-4, atol=1e-4)


def test_tiles_divide_sums_where_they_are_too_few() -> None:
    assert tiles.tiles_of_words(1, 14336, 512, 132).num_splits == 1
    assert tiles.tiles_of_words(1, 64, 1792, 132).num_splits > 1
    assert tiles.tiles_of_words(16, 4096, 512, 132).num_splits > 1
    assert tiles.tiles_of_words(512, 14336, 512, 132).num_splits == 1
    assert split.count(num_tiles=1, num_steps=1, wanted=1000) == 1


def _broken(x: torch.Tensor, weight: PlanarInt4, name: str) -> Callable[[], torch.Tensor]:
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "x has the shape": lambda: linear_int4(x[:, :-1], weight),
        "x is float64": lambda: linear_int4(x.double(), weight),
        "x has the strides": lambda: linear_int4(x.T.contiguous().T, weight),
        "bias has 5 values for 6": lambda: linear_int4(x, weight, torch.zeros(5, device=x.device)),
        "bias is int64": lambda: linear_int4(x, weight, torch.zeros(6, device=x.device, dtype=torch.int64)),
        "weight.words is on meta": lambda: linear_int4(x, weight.to("meta")),
    }
    return calls[name]


@pytest.mark.parametrize(
    "message",
    [
        "x has the shape",
        "x is float64",
        "x has the strides",
        "bias has 5 values for 6",
        "bias is int64",
        "weight.words is on meta",
    ],
)
def test_what_the_kernel_does_not_take_is_named(message: str, device: torch.device) -> None:
    weight = PlanarInt4.from_grouped(grouped(6, 64, 32, "zeros", device))
    with pytest.raises(ValueError, match=message):
        _broken(torch.randn(3, 64, device=device), weight, message)()


def test_groups_that_no_chunk_lies_in_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="groups of 24 inputs"):
        ops_linear.place(grouped(4, 48, 24, "zeros", device), device)
    assert launch.unavailable(device) == ""
