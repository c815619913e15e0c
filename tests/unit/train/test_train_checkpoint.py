"""A run that goes on from a checkpoint is the run that never stopped, and a checkpoint is whole or not there."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from shard_jobs import Job, config_of, save_with_one_that_cannot, train_alone, train_together

from callboard.actors.train.checkpoint import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointNoRoom,
    CheckpointWriter,
    checkpoints_in,
    discard,
    load,
    prune,
    remove_leftovers,
)
from callboard.actors.train.group import alone
from callboard.actors.train.rng import rng_state, seed_rng, set_rng_state
from callboard.actors.train.sharding import shard_model

if TYPE_CHECKING:
    from rank_processes import Ranks

pytestmark = pytest.mark.timeout(120)

CPU = torch.device("cpu")
EVERYTHING = {"bits": 8, "ema": 0.9}


def both_ways(job: Job, steps: int, folder: Path, run: Any) -> tuple[Any, Any]:
    """The run in one go, and in two with a checkpoint between."""
    whole = run(replace(job, steps=2 * steps))
    run(replace(job, steps=steps, save=folder))
    return whole, run(replace(job, steps=steps, checkpoint=folder))


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize(
    ("dtype", "settings"),
    [
        (torch.float32, {}),
        (torch.bfloat16, EVERYTHING),
        pytest.param(torch.bfloat16, {"stochastic_rounding": True}, marks=pytest.mark.slow),
    ],
    ids=["float32", "everything", "rounding"],
)
def test_shards_that_go_on_end_in_the_same_bits(
    ranks: Ranks, tmp_path: Path, zero: int, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    job = Job(config_of(zero, **settings), dtype=dtype, dropout=0.1)
    whole, resumed = both_ways(job, 3, tmp_path / "step-3", lambda each: ranks.run(train_together, each)[0])
    assert resumed.extra == {"step": 3}
    assert resumed.losses == whole.losses[3:]
    assert resumed.digest == whole.digest


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_one_that_goes_on_ends_in_the_same_bits(tmp_path: Path, lora: bool) -> None:
    for number, (dtype, settings) in enumerate([(torch.float32, {}), (torch.bfloat16, EVERYTHING)]):
        job = Job(config_of(**settings), dtype=dtype, lora=lora, dropout=0.1)
        whole, resumed = both_ways(job, 3, tmp_path / f"step-{number}", train_alone)
        assert resumed.losses == whole.losses[3:]
        assert resumed.digest == whole.digest


@pytest.mark.slow
def test_new_processes_end_in_the_same_bits(ranks: Ranks, tmp_path: Path) -> None:
    from rank_processes import Ranks

    jobs = {
        zero: Job(config_of(zero, **EVERYTHING), dtype=torch.bfloat16, dropout=0.1, steps=5, save=tmp_path / f"{zero}")
        for zero in (1, 2, 3)
    }
    for job in jobs.values():
        ranks.run(train_together, job)
    others = Ranks(tmp_path)
    for job in jobs.values():
        whole = ranks.run(train_together, replace(job, steps=10, save=None))[0]
        resumed = others.run(train_together, replace(job, checkpoint=job.save, save=None))[0]
        assert resumed.losses == whole.losses[5:]
        assert resumed.digest == whole.digest
    others.close()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("settings", [{}, pytest.param({"ema": 0.9}, marks=pytest.mark.slow)], ids=["plain", "average"])
def test_other_numbers_of_shards_and_stages_go_on_alike(
    ranks: Ranks, tmp_path: Path, lora: bool, settings: dict[str, Any]
) -> None:
    """From one to two, from two to one, and from every stage to every other."""
    whole = train_alone(Job(config_of(**settings), lora=lora, steps=6))
    train_alone(Job(config_of(**settings), lora=lora, steps=3, save=tmp_path / "alone"))
    for zero in (1, 2, 3):
        ranks.run(train_together, Job(config_of(zero, **settings), lora=lora, steps=3, save=tmp_path / f"zero-{zero}"))
    for source in ("alone", "zero-1", "zero-2", "zero-3"):
        job = Job(config_of(**settings), lora=lora, steps=3, checkpoint=tmp_path / source)
        outcomes = [train_alone(job)]
        if source != "zero-2":
            outcomes += [
                ranks.run(
                    train_together, Job(config_of(zero, **settings), lora=lora, steps=3, checkpoint=job.checkpoint)
                )[0]
                for zero in (1, 3)
            ]
        for outcome in outcomes:
            assert outcome.losses == pytest.approx(whole.losses[3:], abs=1e-5)
            for name, weights in whole.weights.items():
                assert torch.allclose(outcome.weights[name], weights, atol=1e-4)


def test_eight_bit_moments_go_on_in_other_blocks(ranks: Ranks, tmp_path: Path) -> None:
    """Where blocks change, a moment is off by what eight bits are off anyway, and a stage alone changes no block."""
    whole = train_alone(Job(config_of(bits=8), steps=8))
    train_alone(Job(config_of(bits=8), steps=4, save=tmp_path / "alone"))
    ranks.run(train_together, Job(config_of(3, bits=8), steps=4, save=tmp_path / "two"))
    spread, _ = ranks.run(train_together, Job(config_of(1, bits=8), steps=4, checkpoint=tmp_path / "alone"))
    gathered = train_alone(Job(config_of(bits=8), steps=4, checkpoint=tmp_path / "two"))
    first, third = (
        ranks.run(train_together, Job(config_of(zero, bits=8), steps=4, checkpoint=tmp_path / "two"))[0]
        for zero in (1, 3)
    )
    for outcome in (spread, gathered, first):
        assert outcome.losses == pytest.approx(whole.losses[4:], abs=5e-3)
    assert first.losses == pytest.approx(third.losses, abs=1e-5)
    # Were the moments lost, the first steps would be as large as a run's first: far from this.
    fresh = train_alone(Job(config_of(bits=8), steps=4)).losses
    assert max(abs(a - b) for a, b in zip(fresh, whole.losses[4:], strict=True)) > 5e-2


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    """What is written is the state of the moment, whatever happens to the weights next."""
    sharded = shard_model(torch.nn.Linear(300, 300), alone(CPU), config_of())
    before = {name: tensor.clone() for name, tensor in sharded.export()}
    pending = CheckpointWriter(alone(CPU)).save(tmp_path / "step-0", sharded, {}, b"")
    with torch.no_grad():
        for param in sharded.module.parameters():
            param.zero_()
    pending.wait()
    assert pending.done
    other = shard_model(torch.nn.Linear(300, 300), alone(CPU), config_of())
    load(tmp_path / "step-0", other)
    for name, tensor in other.export():
        assert torch.equal(tensor, before[name])


def test_only_a_whole_checkpoint_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "step-2.partial").mkdir()
    (tmp_path / "step-2.partial" / "junk").write_bytes(b"of a process that was killed")
    sharded = shard_model(torch.nn.Linear(3, 3), alone(CPU), config_of())
    writer = CheckpointWriter(alone(CPU))
    for step in (1, 2, 3):
        writer.save(tmp_path / f"step-{step}", sharded, {"step": step}, b"").wait()
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-1", "step-2", "step-3"]
    assert not (tmp_path / "step-2" / "junk").exists()
    writer.save(tmp_path / "step-3", sharded, {"step": 33}, b"").wait()
    assert load(tmp_path / "step-3", sharded).extra == {"step": 33}
    prune(tmp_path, 1, {"step-1"})
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-1", "step-3"]
    (tmp_path / "step-4.partial").mkdir()
    remove_leftovers(tmp_path)
    discard(tmp_path / "step-9")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("step")) == ["step-1", "step-3"]


@pytest.fixture
def file_limit() -> Iterator[None]:
    """No file may grow beyond 64 KiB, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_leaves_the_last_one_and_the_run(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    sharded = shard_model(torch.nn.Linear(200, 200), alone(CPU), config_of())
    writer = CheckpointWriter(alone(CPU))
    writer.save(tmp_path / "step-1", sharded, {"step": 1}, b"").wait()
    request.getfixturevalue("file_limit")
    with pytest.raises(CheckpointNoRoom) as met:
        writer.save(tmp_path / "step-2", sharded, {"step": 2}, b"").wait()
    assert met.value.hint
    assert "File too large" in str(met.value)
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-1"]
    assert not list(tmp_path.glob("*.partial"))
    sharded.module(torch.ones(1, 200)).sum().backward()
    sharded.finish_gradients()
    sharded.step(1e-3, torch.ones(()))
    assert load(tmp_path / "step-1", sharded).extra == {"step": 1}


def test_one_rank_without_room_is_told_by_all(ranks: Ranks, tmp_path: Path) -> None:
    for told in ranks.run(save_with_one_that_cannot, tmp_path):
        assert told.startswith("train.checkpoint_no_room")
        assert "rank 1" in told
    assert [path.name for path in checkpoints_in(tmp_path)] == ["step-2"]


def test_what_cannot_be_gone_on_from_is_said(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    sharded = shard_model(torch.nn.Linear(3, 3), alone(CPU), config_of())
    CheckpointWriter(alone(CPU)).save(folder, sharded, {}, b"").wait()
    with pytest.raises(CheckpointMismatch, match="average"):
        load(folder, shard_model(torch.nn.Linear(3, 3), alone(CPU), config_of(ema=0.5)))
    with pytest.raises(CheckpointMismatch, match="shape"):
        load(folder, shard_model(torch.nn.Linear(4, 3), alone(CPU), config_of()))
    with pytest.raises(CheckpointDamaged):
        load(tmp_path / "step-2", sharded)
    data = folder / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(CheckpointDamaged):
        load(folder, sharded)


def test_random_numbers_go_on_where_they_were() -> None:
    import numpy as np

    def drawn() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    seed_rng(1, 2, 3)
    drawn()
    state = rng_state(CPU)
    expected = drawn()
    assert drawn() != expected
    set_rng_state(state, CPU)
    assert drawn() == expected
    seed_rng(1, 2, 3)
    first = drawn()
    seed_rng(1, 2, 4)
    assert drawn() != first
    seed_rng(1, 2, 3)
    assert drawn() == first
