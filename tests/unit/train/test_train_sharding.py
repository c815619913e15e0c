"""Shards change where training keeps things, and nothing that comes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from shard_jobs import Job, Outcome, config_of, train_alone, train_together

from callboard.actors.train.memory import zero_memory_error
from callboard.actors.train.optimizer import Recipe
from callboard.actors.train.rounding import round_stochastically
from callboard.actors.train.sharding import shard_model
from callboard.runtime.errors import ConfigError

if TYPE_CHECKING:
    from rank_processes import Ranks

pytestmark = pytest.mark.timeout(120)

STEPS = 20
STAGES = (1, 2, 3)
# What the second does, the third does too.
EACH_STAGE = (1, pytest.param(2, marks=pytest.mark.slow), 3)


def furthest(one: Outcome, other: Outcome) -> float:
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def furthest_weight(one: Outcome, other: Outcome) -> float:
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


@pytest.fixture(scope="module")
def alone() -> dict[bool, Outcome]:
    return {lora: train_alone(Job(config_of(), lora=lora, steps=STEPS)) for lora in (False, True)}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("zero", EACH_STAGE)
def test_two_shards_learn_as_one_does(ranks: Ranks, alone: dict[bool, Outcome], zero: int, lora: bool) -> None:
    first, second = ranks.run(train_together, Job(config_of(zero), lora=lora, steps=STEPS))
    assert alone[lora].losses[-1] < alone[lora].losses[0] - 1e-3
    assert first.losses == second.losses
    assert first.norms == second.norms
    assert furthest(first, alone[lora]) <= 1e-5
    assert furthest_weight(first, alone[lora]) <= 1e-4
    assert first.norms == pytest.approx(alone[lora].norms, rel=1e-5)
    assert all(not tensor.numel() for tensor in second.weights.values())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("zero", EACH_STAGE)
def test_how_a_step_is_cut_up_changes_nothing(ranks: Ranks, alone: dict[bool, Outcome], zero: int, lora: bool) -> None:
    """Each rank's samples at once or one by one: gradients are sums over all of them."""
    for num_micro_batches in (2, 8):
        job = Job(config_of(zero), lora=lora, steps=4, num_micro_batches=num_micro_batches)
        outcome, _ = ranks.run(train_together, job)
        assert outcome.losses == pytest.approx(alone[lora].losses[:4], abs=1e-5)


@pytest.mark.parametrize("zero", EACH_STAGE)
@pytest.mark.parametrize(
    "settings", [{}, {"bits": 8}, {"stochastic_rounding": True}], ids=["master", "eight_bits", "rounding"]
)
def test_sixteen_bits_stay_near_one_shard(ranks: Ranks, zero: int, settings: dict[str, Any]) -> None:
    job = Job(config_of(zero, **settings), dtype=torch.bfloat16, steps=6)
    outcome, _ = ranks.run(train_together, job)
    one = train_alone(job)
    # A step of bfloat16 is 2^-8 of a loss of about 4; that the losses fall is what the steps are for.
    assert furthest(outcome, one) <= 0.06
    assert outcome.losses[-1] < outcome.losses[0] - 0.03


def test_the_average_is_what_comes_out(ranks: Ranks) -> None:
    plain, averaged = (train_alone(Job(config_of(ema=ema), steps=5)) for ema in (0.0, 0.5))
    assert plain.losses == averaged.losses
    assert furthest_weight(plain, averaged) > 1e-4
    for zero in (1, 3):
        outcome, _ = ranks.run(train_together, Job(config_of(zero, ema=0.5), steps=5))
        assert furthest_weight(outcome, averaged) <= 1e-5


def test_offload_changes_nothing(ranks: Ranks) -> None:
    for zero in STAGES:
        plain, offloaded = (
            ranks.run(train_together, Job(config_of(zero, offload=offload), steps=3))[0] for offload in (False, True)
        )
        assert plain.digest == offloaded.digest


def test_a_third_stage_shard_keeps_half(ranks: Ranks, alone: dict[bool, Outcome]) -> None:
    outcome, _ = ranks.run(train_together, Job(config_of(3), steps=2))
    assert outcome.memory.total <= 0.55 * alone[False].memory.total


@pytest.mark.parametrize("zero", EACH_STAGE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_formula_says_what_is_kept(ranks: Ranks, zero: int, dtype: torch.dtype) -> None:
    for settings in ({}, {"bits": 8, "ema": 0.9}):
        outcome, _ = ranks.run(train_together, Job(config_of(zero, **settings), dtype=dtype, steps=1, hidden=128))
        assert zero_memory_error(outcome.memory, outcome.formula) <= 0.05


def test_only_matrices_decay() -> None:
    from callboard.actors.train.group import alone as group_of_one

    module = torch.nn.Linear(4, 4)
    before = {name: param.detach().clone() for name, param in module.named_parameters()}
    sharded = shard_model(module, group_of_one(torch.device("cpu")), config_of(weight_decay=0.5))
    (module(torch.ones(1, 4)).sum() * 0).backward()
    sharded.finish_gradients()
    sharded.step(0.1, torch.ones(()))
    assert torch.equal(module.bias, before["bias"])
    assert torch.allclose(module.weight, before["weight"] * (1 - 0.1 * 0.5))


def test_a_step_that_is_dropped_leaves_no_trace() -> None:
    from callboard.actors.train.group import alone as group_of_one

    module = torch.nn.Linear(4, 4)
    sharded = shard_model(module, group_of_one(torch.device("cpu")), config_of())
    before = module.weight.detach().clone()
    module(torch.ones(1, 4)).sum().backward()
    assert float(sharded.finish_gradients()) > 0
    sharded.drop_gradients()
    assert torch.equal(module.weight, before)
    (module(torch.ones(1, 4)).sum() * 0).backward()
    assert float(sharded.finish_gradients()) == 0


def test_stochastic_rounding_is_right_on_average_and_repeats() -> None:
    values = torch.full((1 << 16,), 1 + 2**-9)  # a quarter of the way from 1 to the next bfloat16
    rounded = torch.empty_like(values, dtype=torch.bfloat16)
    round_stochastically(values, rounded, (1, 2, 3))
    assert set(rounded.float().tolist()) == {1.0, 1 + 2**-7}
    assert float(rounded.float().mean()) == pytest.approx(1 + 2**-9, abs=2**-13)
    again, other = torch.empty_like(rounded), torch.empty_like(rounded)
    round_stochastically(values, again, (1, 2, 3))
    round_stochastically(values, other, (1, 2, 4))
    assert torch.equal(rounded, again)
    assert not torch.equal(rounded, other)
    odd = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -3.0])
    kept = torch.empty(5, dtype=torch.bfloat16)
    round_stochastically(odd, kept, (0,))
    assert torch.equal(kept.float().nan_to_num(7), odd.nan_to_num(7))


def test_settings_that_make_no_sense_are_refused() -> None:
    from callboard.actors.train.group import alone as group_of_one

    group = group_of_one(torch.device("cpu"))
    with pytest.raises(ConfigError, match="bits"):
        Recipe.of(config_of(bits=4))
    with pytest.raises(ConfigError, match="zero"):
        shard_model(torch.nn.Linear(2, 2), group, config_of(4))
    with pytest.raises(ConfigError, match="no parameter"):
        shard_model(torch.nn.Linear(2, 2).requires_grad_(False), group, config_of())
    with pytest.raises(ConfigError, match="float16"):
        shard_model(torch.nn.Linear(2, 2).half(), group, config_of(stochastic_rounding=True))
