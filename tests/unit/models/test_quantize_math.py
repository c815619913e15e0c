"""The methods of quantization as mathematics: against slower ways to compute the same, and against plain rounding."""

from __future__ import annotations

import pytest
import torch

from callboard.kernels import checkpoint_formats
from callboard.kernels.grouped import GroupedInt4, pack_nibbles
from callboard.kernels.quantize_gptq import DAMPING, FIT_DAMPING, fit_to_inputs, gptq, inverse_factor, round_to_nearest
from callboard.kernels.quantize_grid import GridSpec, clip_grid, fit_grid
from callboard.kernels.quantize_kv import KV_ROUNDING
from callboard.kernels.quantize_scales import awq_scales, output_error, searched_smooth_scales, smooth_scales
from callboard.kernels.quantized import PackedCache, read_blocks, write_slots
from callboard.kernels.rotation import random_orthogonal, rotate_inputs, rotate_outputs

SPECS = (GridSpec(4, 16), GridSpec(4, 16, symmetric=True), GridSpec(8, symmetric=True), GridSpec(4))


def inputs_of(num_in: int, num_rows: int = 200) -> torch.Tensor:
    """Correlated, and some a hundred times larger than others, as activations are."""
    mixed = torch.randn(num_rows, num_in, dtype=torch.float64) @ torch.randn(num_in, num_in, dtype=torch.float64)
    return mixed * 10 ** torch.empty(num_in, dtype=torch.float64).uniform_(-1, 1)


def second_moment(x: torch.Tensor) -> torch.Tensor:
    return x.T @ x / len(x)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("num_in", [16, 48, 40])
def test_plain_rounding_is_within_half_a_step(spec: GridSpec, num_in: int) -> None:
    weight = torch.randn(7, num_in, dtype=torch.float64)
    rounded = round_to_nearest(weight, spec)
    scales, _ = rounded.grid.columns(rounded.groups())
    # Ends may lie half a step out, where zero was moved to a code or the grid has one code less above zero.
    assert ((rounded.values() - weight).abs() <= 1.01 * scales).all()
    assert (((rounded.values() - weight).abs() <= 0.501 * scales).sum() / weight.numel()) > 0.9
    assert rounded.grid.scales.shape == (7, spec.num_groups(num_in))
    assert (rounded.codes >= spec.smallest).all()
    assert (rounded.codes <= spec.largest).all()
    torch.testing.assert_close(rounded.grid.scales, rounded.grid.scales.to(spec.scale_dtype).double(), rtol=0, atol=0)


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.zeros(3, 32)
    assert not round_to_nearest(weight, GridSpec(4, 16)).values().any()
    assert not gptq(weight, torch.eye(32), GridSpec(4, 16)).values().any()


@pytest.mark.parametrize("damage", [float("nan"), float("inf"), 1e30])
def test_what_no_scale_reaches_is_refused(damage: float) -> None:
    weight = torch.randn(3, 32)
    weight[1, 5] = damage
    with pytest.raises(ValueError, match="not finite"):
        fit_grid(weight, GridSpec(4, 16))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_clipping_never_loses_more_of_a_group_than_the_whole_range(spec: GridSpec) -> None:
    weight = torch.randn(5, 40, dtype=torch.float64) ** 3
    hessian = second_moment(inputs_of(40))
    clipped, plain = clip_grid(weight, hessian, spec), fit_grid(weight, spec)
    group = spec.group(40)
    for first in range(0, 40, group):
        own = slice(first, min(first + group, 40))
        lost = [(grid.values(grid.codes(weight)) - weight)[:, own] for grid in (clipped, plain)]
        after, before = (((d @ hessian[own, own]) * d).sum(1) for d in lost)
        assert (after <= before * (1 + 1e-9)).all()


def test_gptq_is_optimal_brain_surgery_column_by_column() -> None:
    """Against the update as it is derived, which inverts what is left of the Hessian anew for each column."""
    num_in, spec = 24, GridSpec(4, 8)
    weight = torch.randn(5, num_in, dtype=torch.float64)
    hessian = second_moment(inputs_of(num_in))
    damped = hessian + torch.eye(num_in, dtype=torch.float64) * DAMPING * hessian.diagonal().mean()
    grid = fit_grid(weight, spec)
    scales, zeros = grid.columns(grid.groups)
    left, expected = weight.clone(), torch.empty_like(weight)
    for column in range(num_in):
        inverse = torch.linalg.inv(damped[column:, column:])
        code = ((left[:, column] / scales[:, column]).round() + zeros[:, column]).clamp(0, 15)
        expected[:, column] = (code - zeros[:, column]) * scales[:, column]
        error = (left[:, column] - expected[:, column]) / inverse[0, 0]
        left[:, column:] -= error[:, None] * inverse[0]
    found = gptq(weight, hessian, spec, act_order=False, clip=False)
    torch.testing.assert_close(found.values(), expected)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("static_groups", [True, False])
@pytest.mark.parametrize("act_order", [True, False])
def test_gptq_loses_less_of_the_output_than_rounding(spec: GridSpec, static_groups: bool, act_order: bool) -> None:
    num_in = 200  # more than a block, and no multiple of a group
    weight = torch.randn(12, num_in, dtype=torch.float64)
    hessian = second_moment(inputs_of(num_in, 400))
    found = gptq(weight, hessian, spec, static_groups=static_groups, act_order=act_order)
    plain = round_to_nearest(weight, spec)
    lost, rounded = (float(output_error(one.values() - weight, hessian)) for one in (found, plain))
    assert lost < 0.7 * rounded
    assert (found.codes >= spec.smallest).all()
    assert (found.codes <= spec.largest).all()
    assert (found.order is not None) == (act_order and not static_groups)


def test_weights_fitted_to_other_inputs_give_what_they_gave() -> None:
    """The damped least squares that it is by definition; and of inputs that were only turned, the same outputs."""
    weight = torch.randn(5, 24, dtype=torch.float64)
    y = torch.randn(400, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    x = y + 0.1 * torch.randn_like(y)
    hessian, shift = second_moment(x), (y - x).T @ x / len(x)
    fitted = fit_to_inputs(weight, hessian, shift)
    damping = FIT_DAMPING * hessian.diagonal().mean()
    # min over d of |(y - x) w^T - x d^T|^2 + damping |d|^2, a row of the weight at a time
    rows = torch.cat([x / len(x) ** 0.5, damping.sqrt() * torch.eye(24, dtype=torch.float64)])
    wanted = torch.cat([(y - x) @ weight.T / len(x) ** 0.5, torch.zeros(24, 5, dtype=torch.float64)])
    torch.testing.assert_close(fitted, weight + torch.linalg.lstsq(rows, wanted).solution.T)
    x = 0.8 * y
    hessian, shift = second_moment(x), (y - x).T @ x / len(x)
    before, after = (
        ((x @ one.T) - y @ weight.T).square().mean() for one in (weight, fit_to_inputs(weight, hessian, shift))
    )
    assert after < 0.1 * before
    assert torch.equal(fit_to_inputs(weight, hessian, torch.zeros_like(shift)), weight)


def test_inputs_of_one_strength_that_know_nothing_of_each_other_leave_plain_rounding() -> None:
    weight = torch.randn(6, 64)
    found = gptq(weight, torch.eye(64), GridSpec(4, 16), clip=False)
    torch.testing.assert_close(found.values(), round_to_nearest(weight, GridSpec(4, 16)).values())


@pytest.mark.parametrize("static_groups", [True, False])
def test_codes_in_a_checkpoint_stand_for_the_same_values(static_groups: bool) -> None:
    spec = GridSpec(4, 16)
    hessian = second_moment(inputs_of(64)).float()
    found = gptq(torch.randn(8, 64), hessian, spec, static_groups=static_groups)
    codes = found.codes if found.order is None else found.codes[:, found.order]
    weight = GroupedInt4(
        pack_nibbles(codes.to(torch.uint8)), found.grid.scales.half(), found.grid.zeros.half(), found.order
    )
    written = checkpoint_formats.to_compressed_int4(weight)
    read = checkpoint_formats.from_compressed_int4(
        written["weight_packed"],
        written["weight_scale"],
        written["weight_zero_point"],
        written.get("weight_g_idx"),
        written["weight_shape"],
        False,
    )
    torch.testing.assert_close(read.dequantize(), found.values())


def test_an_input_that_was_never_there_does_no_harm() -> None:
    hessian = second_moment(inputs_of(32)).float()
    hessian[5] = hessian[:, 5] = 0
    assert gptq(torch.randn(4, 32), hessian, GridSpec(4, 16)).values().isfinite().all()


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
def test_a_hessian_that_is_not_finite_is_refused(damage: float) -> None:
    hessian = torch.eye(16)
    hessian[3, 3] = damage
    with pytest.raises(ValueError, match="hessian is not finite"):
        inverse_factor(hessian, DAMPING)


def test_a_hessian_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="16 inputs"):
        gptq(torch.randn(3, 16), torch.eye(15), GridSpec(4, 16))


@pytest.mark.parametrize("sources", [None, torch.arange(16).view(2, 1, 8).expand(-1, 2, -1).flatten()])
def test_awq_finds_scales_that_lose_no_more_than_none(sources: torch.Tensor | None) -> None:
    spec = GridSpec(4, 16)
    weight = torch.randn(20, 32, dtype=torch.float64)
    x = torch.randn(300, 32, dtype=torch.float64)
    x[:, ::8] *= 30  # what AWQ is for
    hessian = second_moment(x)
    scales = awq_scales(weight, hessian, spec, sources)
    each = scales if sources is None else scales[sources]
    assert scales.shape == ((32,) if sources is None else (16,))
    torch.testing.assert_close((x / each) @ (weight * each).T, x @ weight.T)
    lost = output_error(round_to_nearest(weight * each, spec).values() / each - weight, hessian)
    assert lost < 0.8 * output_error(round_to_nearest(weight, spec).values() - weight, hessian)


def test_smoothing_divides_the_range_between_inputs_and_weights() -> None:
    weight, x = torch.randn(20, 32), torch.randn(300, 32)
    x[:, 3] *= 100
    largest = x.abs().amax(0)
    scales = smooth_scales(weight, largest, 0.5)
    torch.testing.assert_close((x / scales) @ (weight * scales).T, x @ weight.T, rtol=1e-4, atol=1e-3)
    ratio = (largest / scales) / (weight * scales).abs().amax(0)
    torch.testing.assert_close(ratio, ratio[:1].expand(32), rtol=1e-4, atol=0)
    all_to_weights = largest / smooth_scales(weight, largest, 1.0)
    torch.testing.assert_close(all_to_weights, all_to_weights[:1].expand(32))
    with pytest.raises(ValueError, match="alpha"):
        smooth_scales(weight, largest, 1.5)


def in_eight_bits(x: torch.Tensor) -> torch.Tensor:
    steps = x.abs().amax(1, keepdim=True) / 127
    return (x / steps).round() * steps


@pytest.mark.parametrize("sources", [None, torch.arange(16).view(2, 1, 8).expand(-1, 2, -1).flatten()])
@pytest.mark.parametrize("outlier", [1.0, 30.0])
def test_the_alpha_that_is_found_loses_no_more_than_others(sources: torch.Tensor | None, outlier: float) -> None:
    weight, x = torch.randn(20, 32), torch.randn(300, 32)
    x[:, 3] *= outlier
    x[7, 5] *= 40 * outlier
    largest = x.abs().amax(0)

    def lost(scales: torch.Tensor) -> float:
        each = scales if sources is None else scales[sources]
        difference = in_eight_bits(x / each) @ in_eight_bits(weight * each).T - wanted
        return float((difference.square().sum(1) / wanted.square().sum(1)).sum())

    wanted = x @ weight.T
    found = searched_smooth_scales(weight, x, largest, sources)
    assert found.shape == ((32,) if sources is None else (16,))
    others = [smooth_scales(weight, largest, alpha, sources) for alpha in (0.25, 0.5, 0.75)]
    assert lost(found) <= min(map(lost, [torch.ones_like(found), *others])) * (1 + 1e-4)
    if outlier > 1:
        assert lost(found) < 0.8 * lost(torch.ones_like(found))


def test_keys_and_values_come_back_within_half_a_step_of_their_own_head() -> None:
    x = torch.randn(2, 3, 5, 64, dtype=torch.float64)
    x[0, 1, 2] *= 1000
    x[1, 0, 0] = 0
    top = x.abs().amax(-1, keepdim=True)
    assert ((KV_ROUNDING["int8"](x) - x).abs() <= top / 127 / 2 * (1 + 1e-9)).all()


def test_in_four_bits_they_come_back_as_a_cache_gives_them_back() -> None:
    x = torch.randn(2, 3, 5, 64)
    x[0, 1, 2] *= 1000
    x[1, 0, 0] = 0
    kept = KV_ROUNDING["int4"](x)
    cache = PackedCache.zeros((5, 1, 6, 64))
    write_slots(x.flatten(0, 1).transpose(0, 1), cache, torch.arange(5))
    assert torch.equal(read_blocks(cache, torch.arange(5), x.dtype)[:, 0].transpose(0, 1).view_as(x), kept)
    assert not kept[1, 0, 0].any()
    assert ((kept - x).norm(dim=-1) <= 0.1 * x.norm(dim=-1)).all()


def test_a_rotation_turns_what_is_written_and_what_reads_it_alike() -> None:
    rotation = random_orthogonal(24, seed=3)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(24, dtype=torch.float64))
    assert not torch.equal(rotation, random_orthogonal(24, seed=4))
    writes, reads, norm = torch.randn(24, 9), torch.randn(7, 24), torch.rand(24) + 0.5
    plain = reads * norm @ writes
    turned = rotate_inputs(reads, rotation, norm) @ rotate_outputs(writes, rotation)
    torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="24 dimensions"):
        rotate_inputs(reads, rotation[:20, :20])
