"""Learned rounding: its gradients, its limits, and that a layer loses much less by it than by plain rounding."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from callboard.actors.quantize.evaluate import last_hidden
from callboard.actors.quantize.prepare import prepare
from callboard.actors.quantize.run import run
from callboard.actors.quantize.source import FolderSource, open_source
from callboard.kernels.quantize_gptq import round_to_nearest
from callboard.kernels.quantize_grid import GridSpec
from callboard.kernels.quantize_learned import ENDS, MOST_OFFSET, LearnedRounding
from callboard.schemas.quantize import Quantize

pytestmark = pytest.mark.timeout(120)

SPECS = (GridSpec(4, 16), GridSpec(4, 16, symmetric=True), GridSpec(4, 16, scale_dtype=torch.bfloat16), GridSpec(4))


def through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """`rounded`, with the gradient of x."""
    return x + (rounded - x).detach()


def by_autograd(
    weight: torch.Tensor, spec: GridSpec, offsets: torch.Tensor, low_factor: torch.Tensor, high_factor: torch.Tensor
) -> torch.Tensor:
    """The same step by step, as the paper writes it, of weight [num_out, num_groups, group]."""
    start = round_to_nearest(weight.flatten(1), spec).grid
    low = (spec.smallest - start.zeros[..., None]) * start.scales[..., None] * low_factor
    high = (spec.largest - start.zeros[..., None]) * start.scales[..., None] * high_factor
    scales = (high - low) / (spec.largest - spec.smallest)
    scales = through(scales, scales.to(spec.scale_dtype).double())
    if spec.symmetric:
        zeros = torch.full_like(scales, 8)
    else:
        zeros = through(-low / scales, (-low / scales).round().clamp(0, spec.largest))
    steps = weight / scales + offsets
    codes = (through(steps, steps.round()) + zeros).clamp(spec.smallest, spec.largest)
    return (codes - zeros) * scales


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_gradients_are_those_of_the_paper(spec: GridSpec) -> None:
    weight = torch.randn(5, 48, dtype=torch.float64)
    learned = LearnedRounding(weight, spec)
    with torch.no_grad():  # somewhere on the way, some codes beyond the ends
        learned.learned[0].uniform_(-MOST_OFFSET, MOST_OFFSET)
        for factor in learned.learned[1:]:
            factor.uniform_(*ENDS)
    copies = [tensor.detach().clone().requires_grad_() for tensor in learned.learned]
    expected = by_autograd(weight.unflatten(1, (-1, spec.group(48))), spec, *copies).flatten(1)
    values = learned.values()
    torch.testing.assert_close(values, expected)
    of_output = torch.randn_like(values)
    values.backward(of_output)
    expected.backward(of_output)
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in copies)
    for ours, theirs in zip(learned.learned, copies, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(learned.rounded().values(), values.detach())


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("num_in", [48, 40])
def test_it_begins_with_plain_rounding_and_ends_in_the_grid(spec: GridSpec, num_in: int) -> None:
    weight = torch.randn(32, num_in)
    weight[2] = 0
    learned = LearnedRounding(weight, spec)
    torch.testing.assert_close(learned.values().detach(), round_to_nearest(weight, spec).values())
    x = torch.randn(300, 12) @ torch.randn(12, num_in)  # inputs that know of each other, as activations do
    for step in range(200):
        ((learned.values() - weight) @ x.T).square().mean().backward()
        learned.step((1 - step / 200) / 200)
    rounded = learned.rounded()
    torch.testing.assert_close(rounded.values(), learned.values().detach())
    assert torch.equal(rounded.codes, rounded.codes.round())
    assert (rounded.codes >= spec.smallest).all()
    assert (rounded.codes <= spec.largest).all()
    assert torch.equal(rounded.grid.scales, rounded.grid.scales.to(spec.scale_dtype).float())
    assert torch.equal(rounded.grid.zeros, rounded.grid.zeros.round())
    found, plain = (
        float(((values - weight) @ x.T).square().sum())
        for values in (rounded.values(), round_to_nearest(weight, spec).values())
    )
    assert found < 0.75 * plain
    assert not rounded.values()[2].isnan().any()


@pytest.mark.parametrize(("method", "share"), [("autoround", 0.8), ("gptaq", 0.45)])
def test_a_model_loses_less_than_by_plain_rounding(tiny_path: Path, tmp_path: Path, method: str, share: float) -> None:
    """On text that calibration has not seen, after all layers, of the folder as it was written; and the same twice."""
    found: dict[str, torch.Tensor] = {}
    for name, own in {"rtn": "rtn", "learned": method, "again": method}.items():
        request = Quantize(
            model=str(tiny_path),
            out=str(tmp_path / name),
            method=own,
            group_size=16,
            samples=16,
            length=64,
            steps=30,
        )
        job, tokens = prepare(request)
        run(job, tokens.calibration, tokens.held_out)
        with torch.inference_mode():
            found[name] = last_hidden(FolderSource(tmp_path / name), tokens.held_out)
            found["full"] = last_hidden(open_source(tiny_path), tokens.held_out)
    assert torch.equal(found["learned"], found["again"])
    lost = {name: float((hidden - found["full"]).square().sum()) for name, hidden in found.items()}
    assert lost["learned"] < share * lost["rtn"]


def test_the_recipe_travels_with_its_steps_and_seed(tiny_path: Path, tmp_path: Path) -> None:
    request = Quantize(
        model=str(tiny_path), out=str(tmp_path / "out"), method="autoround", group_size=16, length=16, steps=3, seed=7
    )
    recipe = prepare(request)[0].recipe
    assert (recipe.steps, recipe.seed, recipe.wants_plain) == (3, 7, True)
    assert msgspec.json.decode(msgspec.json.encode(recipe), type=type(recipe)) == recipe
