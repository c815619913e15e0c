"""Training ops: the references' gradients against differences, the paths in torch against the references, and AdamW
against PyTorch's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from callboard.kernels import adamw, cross_entropy, ops_training, reference_losses, reference_optim
from callboard.kernels.adamw import Hyper, new_moments
from callboard.kernels.blockwise8 import Blockwise8, borders, dynamic_map
from callboard.kernels.quantized import QuantizedWeight
from callboard.kernels.weights import WeightFormat

OPTIONS = [(0.0, 0.0), (5.0, 0.0), (0.0, 0.1), (30.0, 0.2)]
LOSSES = [reference_losses.linear_cross_entropy, ops_training.linear_cross_entropy]
LAYERS = [reference_losses.lora_linear, ops_training.lora_linear]


def double(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


# Cross-entropy


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("loss", LOSSES, ids=["reference", "chunked"])
def test_the_losss_gradient_is_its_slope(
    loss: partial[torch.Tensor], options: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", 2 * 7 * 8)  # two tokens at a time
    targets = torch.tensor([0, 6, -100, 3, 3])
    assert torch.autograd.gradcheck(lambda h, w: loss(h, w, targets, -100, *options)[0], (double(5, 4), double(7, 4)))


def test_the_reference_is_pytorchs_loss() -> None:
    hidden, weight = double(6, 4), double(9, 4)
    targets = torch.tensor([1, 8, -1, 0, -1, 2])
    loss, count = reference_losses.linear_cross_entropy(hidden, weight, targets, -1, 0.0, 0.3)
    expected = torch.nn.functional.cross_entropy(
        hidden @ weight.T, targets, ignore_index=-1, reduction="sum", label_smoothing=0.3
    )
    torch.testing.assert_close(loss, expected)
    assert int(count) == 4


@settings(max_examples=40)
@given(
    st.integers(0, 17),
    st.integers(1, 60),
    st.integers(1, 9),
    st.sampled_from(OPTIONS),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**32),
)
def test_chunks_change_nothing(
    num_tokens: int, vocab: int, chunk: int, options: tuple[float, float], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cross_entropy.CHUNK_BYTES, "cpu", chunk * vocab * dtype.itemsize)
        patch.setattr(cross_entropy, "WEIGHT_ROWS", 16)
        hidden = torch.randn(num_tokens, 8).to(dtype).requires_grad_()
        weight = torch.randn(vocab, 8).to(dtype).requires_grad_()
        targets = torch.randint(0, vocab, (num_tokens,))
        targets[torch.rand(num_tokens) < 0.3] = -100
        loss, count = ops_training.linear_cross_entropy(hidden, weight, targets, -100, *options)
        (loss * 0.5).backward()
    assert loss.dtype == torch.float32
    wide = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected, expected_count = reference_losses.linear_cross_entropy(wide[0], wide[1], targets, -100, *options)
    (expected * 0.5).backward()
    # Logits of some ten units are rounded to the type, and so is their gradient of at most one.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5 + unit, atol=1e-5 + 20 * unit)
    assert int(count) == int(expected_count)
    for x, y in zip((hidden, weight), wide, strict=True):
        assert x.grad is not None
        assert y.grad is not None
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=16 * unit, atol=16 * unit)


class Largest(TorchDispatchMode):
    """The most values of any tensor that an operation returned."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple) else (result,):
            if isinstance(x, torch.Tensor):
                self.values = max(self.values, x.numel())
        return result


def test_no_more_logits_than_a_chunk_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab, num_tokens, chunk = 500, 64, 4
    monkeypatch.setitem(cross_entropy.CHUNK_BYTES, "cpu", chunk * vocab * 4)
    hidden, weight = torch.randn(num_tokens, 2, requires_grad=True), torch.randn(vocab, 2, requires_grad=True)
    targets = torch.randint(0, vocab, (num_tokens,))
    largest: list[int] = []
    for loss in LOSSES:
        with Largest() as mode:
            loss(hidden, weight, targets)[0].backward()
        largest.append(mode.values)
    assert largest == [num_tokens * vocab, chunk * vocab]


def test_a_loss_without_gradients_makes_none() -> None:
    hidden, weight, targets = torch.randn(5, 4), torch.randn(7, 4, requires_grad=True), torch.zeros(5).long()
    with torch.no_grad():
        loss, _ = ops_training.linear_cross_entropy(hidden, weight, targets)
    assert not loss.requires_grad
    frozen, _ = ops_training.linear_cross_entropy(hidden, weight.detach(), targets)
    assert not frozen.requires_grad
    torch.testing.assert_close(loss, frozen)


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, weight = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4)
    ops_training.linear_cross_entropy(hidden, weight, torch.zeros(5).long())[0].backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_losses_of_wrong_arguments_are_refused() -> None:
    hidden, weight = torch.zeros(3, 4), torch.zeros(5, 4)
    for targets in (torch.tensor([0, 1, 5]), torch.tensor([0, 1, -1])):
        with pytest.raises(ValueError, match="targets go from"):
            ops_training.linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(ValueError, match="one floating type"):
        ops_training.linear_cross_entropy(hidden, weight.double(), torch.zeros(3).long())
    with pytest.raises(ValueError, match="does not go with"):
        ops_training.linear_cross_entropy(hidden, weight[:, :3], torch.zeros(3).long())
    with pytest.raises(ValueError, match="targets is"):
        ops_training.linear_cross_entropy(hidden, weight, torch.zeros(3))
    with pytest.raises(ValueError, match="softcap is -1"):
        ops_training.linear_cross_entropy(hidden, weight, torch.zeros(3).long(), softcap=-1.0)


# The low-rank layer


@pytest.mark.parametrize("layer", LAYERS, ids=["reference", "fused"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_layers_gradients_are_its_slopes(layer: partial[torch.Tensor], with_bias: bool) -> None:
    weight = torch.randn(5, 6, dtype=torch.float64)
    bias = torch.randn(5, dtype=torch.float64) if with_bias else None
    x, a, b = double(4, 6), double(2, 6), double(5, 2)
    assert torch.autograd.gradcheck(lambda x, a, b: layer(x, weight, a, b, 0.7, bias), (x, a, b))


@settings(max_examples=30)
@given(
    st.integers(0, 9),
    st.integers(1, 12),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_fused_layer_is_the_references(
    num_tokens: int, rank: int, dtype: torch.dtype, wide_adapter: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, num_tokens, 64).to(dtype).requires_grad_()
    kept = torch.float32 if wide_adapter else dtype
    a = (torch.randn(rank, 64) / 8).to(dtype).to(kept).requires_grad_()
    b = torch.randn(10, rank).to(dtype).to(kept).requires_grad_()
    packed = QuantizedWeight.from_float(torch.randn(10, 64) / 8, WeightFormat.INT8)
    y = ops_training.lora_linear(x, packed, a, b, 0.5)
    y.sum().backward()
    wide = [value.detach().double().requires_grad_() for value in (x, a, b)]
    dense = packed.dequantize(dtype).double()
    expected = reference_losses.lora_linear(wide[0], dense, wide[1], wide[2], 0.5)
    expected.sum().backward()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1  # sums of terms of the size of ten, rounded a few times
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    for value, other in zip((x, a, b), wide, strict=True):
        assert value.grad is not None
        assert value.grad.dtype == value.dtype
        torch.testing.assert_close(value.grad.double(), other.grad, rtol=tolerance, atol=4 * tolerance)


def test_only_the_input_and_the_low_side_are_saved() -> None:
    saved: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    weight = torch.randn(30, 20)
    a, b = torch.randn(3, 20, requires_grad=True), torch.randn(30, 3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ops_training.lora_linear(torch.randn(50, 20, requires_grad=True), weight, a, b, 1.0)
    assert sorted(shape for shape in saved if shape[0] == 50) == [(50, 3), (50, 20)]


def test_layers_of_wrong_arguments_are_refused() -> None:
    x, weight, a, b = torch.zeros(3, 8), torch.zeros(6, 8), torch.zeros(2, 8), torch.zeros(6, 2)
    with pytest.raises(ValueError, match="x has rows of 7"):
        ops_training.lora_linear(x[:, :7], weight, a, b, 1.0)
    with pytest.raises(ValueError, match="do not go with"):
        ops_training.lora_linear(x, weight, a, b[:5], 1.0)
    with pytest.raises(ValueError, match="the weight is frozen"):
        ops_training.lora_linear(x, weight.double(), a, b, 1.0)


# AdamW

HYPER = Hyper(lr=0.02, beta1=0.9, beta2=0.99, eps=1e-6, weight_decay=0.1)


@pytest.mark.parametrize("step_of", [reference_optim.adamw_step, ops_training.adamw_step], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_are_pytorchs(step_of: partial[None], dtype: torch.dtype) -> None:
    param = torch.randn(7, 11, dtype=dtype)
    other = torch.nn.Parameter(param.clone())
    optimizer = torch.optim.AdamW(
        [other], lr=HYPER.lr, betas=(HYPER.beta1, HYPER.beta2), eps=HYPER.eps, weight_decay=HYPER.weight_decay
    )
    first, second = new_moments(param)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for step in range(1, 20):
        grad = torch.randn_like(param)
        other.grad = grad.clone()
        optimizer.step()
        step_of(param, grad, first, second, step, HYPER)
        torch.testing.assert_close(param, other.detach(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("with_master", [False, True])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_steps_of_a_bfloat16_parameter(with_master: bool, eight_bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adamw, "SLICE", 512)  # several slices, the last of them not whole
    param = torch.randn(3, 500).bfloat16()
    master = param.float() if with_master else None
    first, second = new_moments(param, eight_bits=eight_bits)
    scale = torch.tensor(0.5)
    for step in range(1, 4):
        grad = torch.randn(3, 500).bfloat16()
        expected = (param if master is None else master).double()
        wide = [reference_optim.values_of(moment, expected).double() for moment in (first, second)]
        reference_optim.adamw_step(expected, grad.double(), wide[0], wide[1], step, HYPER, grad_scale=scale.double())
        ops_training.adamw_step(param, grad, first, second, step, HYPER, master, scale)
        if master is None:
            torch.testing.assert_close(param.double(), expected, rtol=2**-8, atol=0)
        else:
            torch.testing.assert_close(master.double(), expected, rtol=1e-6, atol=1e-6)
            assert torch.equal(param, master.bfloat16())


def test_the_dynamic_map_has_the_published_values() -> None:
    """Of the paper's construction: what a decade's intervals are, and that the ends and zero are there."""
    for signed in (True, False):
        table = dynamic_map(signed)
        assert len(table) == len(table.unique()) == 256
        assert table[-1] == 1
        assert int((table == 0).sum()) == 1
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    assert torch.equal(signed[:127], -signed[128:255].flip(0))
    torch.testing.assert_close(signed[255 - 64 : 255].diff(), torch.full((63,), 0.9 / 64))
    torch.testing.assert_close(unsigned[255 - 128 : 255].diff(), torch.full((127,), 0.9 / 128))
    torch.testing.assert_close(unsigned[1].item(), 0.325e-6)
    torch.testing.assert_close(signed[128].item(), 0.55e-6)


@settings(max_examples=20)
@given(st.integers(1, 1200), st.booleans(), st.integers(0, 2**32))
def test_eight_bits_keep_the_nearest_value_of_the_map(num: int, signed: bool, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.randn(num, dtype=torch.float64) ** 5  # many decades
    values = values if signed else values.abs()
    kept, expected = (Blockwise8.zeros(num, signed=signed) for _ in range(2))
    kept.write(values)
    reference_optim.keep(expected, values)
    assert torch.equal(kept.codes, expected.codes)
    assert torch.equal(kept.scales, expected.scales)
    torch.testing.assert_close(kept.dequantize(dtype=torch.float64), reference_optim.values_of(expected, values))


def test_a_positive_second_moment_is_never_kept_as_zero() -> None:
    kept = Blockwise8.zeros(4, signed=False)
    kept.write(torch.tensor([1.0, 1e-12, 0.0, 2e-7]))
    assert (kept.dequantize() > 0).tolist() == [True, True, False, True]
    assert kept.codes[1] == 1
    assert borders(False)[0] < 2e-7


def test_steps_of_wrong_arguments_are_refused() -> None:
    param, grad = torch.ones(8), torch.ones(8)
    first, second = new_moments(param)
    packed, packed_second = new_moments(param, eight_bits=True)
    assert isinstance(packed, Blockwise8)
    with pytest.raises(ValueError, match="first has the shape"):
        ops_training.adamw_step(param, grad, torch.ones(4), second, 1, HYPER)
    with pytest.raises(ValueError, match=r"first is torch\.bfloat16"):
        ops_training.adamw_step(param, grad, first.bfloat16(), second, 1, HYPER)  # pyright: ignore
    with pytest.raises(ValueError, match="the first moment has 8 values"):
        ops_training.adamw_step(torch.ones(9), torch.ones(9), packed, packed_second, 1, HYPER)
    with pytest.raises(ValueError, match="the other is not"):
        ops_training.adamw_step(param, grad, packed, second, 1, HYPER)
    with pytest.raises(ValueError, match="step is 0"):
        ops_training.adamw_step(param, grad, first, second, 0, HYPER)
    with pytest.raises(ValueError, match="grad_scale"):
        ops_training.adamw_step(param, grad, first, second, 1, HYPER, grad_scale=torch.ones(2))
