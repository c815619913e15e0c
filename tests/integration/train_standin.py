"""A training loop that is small and real, for the tests of what keeps a run going: a tiny network in torch, spread over
the ranks of a group, whose checkpoints and weights lie on the disk as the trainer's do.

Tests lay it down as a package of somebody else's (`install` in board.py). What it does beside training is said by the
configuration's `samples.prompts`: `waitN=FILE` holds the last rank before step N until the file is there, `fail=N:KIND`
raises in it at step N, `pace=S` takes S seconds more for each step.
"""

from __future__ import annotations

import os
import pickle
import shutil
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from callboard.actors.data.errors import BadRecord
from callboard.actors.train.errors import CheckpointDamaged
from callboard.actors.train.job_folder import JobFolder
from callboard.actors.train.shard import Shard
from callboard.actors.train.shard_run import Report, Stop
from callboard.schemas.train import ShardEnd, StartShard, TrainCheckpointed, TrainConfig, TrainEvaluated, TrainProgress

WIDTH = 16


class Standin:
    """Each rank has its share of every step's samples; gradients are summed over the group, in float32.

    Samples are left out by a generator whose state is in the checkpoint, so that going on takes more than the weights.
    With `shares`, one process does what so many ranks would, to the bit where they are two.
    """

    def __init__(self, order: StartShard, shares: int = 1) -> None:
        self.config: TrainConfig = order.config
        self.job = order.job
        self.folder = Path(order.folder)
        self.rank, self.world_size = order.rank, order.world_size
        self.num_shares = max(shares, self.world_size)
        self.shares = range(shares) if shares > 1 else [self.rank]
        self.options = dict(option.split("=", 1) for option in order.config.samples.prompts)
        self.step = 0
        self.num_steps = order.config.steps
        if self.world_size > 1:
            dist.init_process_group(
                "gloo",
                init_method=f"tcp://{order.host}:{order.port}",
                rank=order.rank,
                world_size=order.world_size,
                timeout=timedelta(seconds=20),
            )
        torch.manual_seed(order.config.seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(WIDTH, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=order.config.optimizer.lr)
        self.generator = torch.Generator().manual_seed(order.config.seed + 1)

    def load(self, checkpoint: Path) -> None:
        try:
            state = torch.load(checkpoint / "state.pt", weights_only=True)
        except (OSError, RuntimeError, pickle.UnpicklingError) as error:
            raise CheckpointDamaged(f"{checkpoint} cannot be read: {error}") from error
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.step = state["step"]

    def run(self, report: Report, stop: Stop) -> ShardEnd:
        every = self.config.checkpoints.every
        while self.step < self.num_steps:
            self._hold()
            self.step += 1
            loss = self._train()
            report(
                TrainProgress(
                    job=self.job,
                    step=self.step,
                    num_steps=self.num_steps,
                    loss=loss,
                    lr=self.config.optimizer.lr,
                    grad_norm=1.0,
                    tokens=1,
                    loss_tokens=1,
                    tokens_per_s=1.0,
                    memory_bytes=0,
                    eta_s=0.0,
                )
            )
            if every and self.step % every == 0:
                report(TrainEvaluated(self.job, self.step, loss, True))
                self._checkpoint(report)
            said = self._shared(stop())
            if said:
                if said > 1 and not (every and self.step % every == 0):
                    self._checkpoint(report)
                return ShardEnd.STOPPED
        if self.rank == 0:
            out = Path(self.config.out)
            out.mkdir(parents=True, exist_ok=True)
            torch.save(self.model.state_dict(), out / "weights.part")
            os.replace(out / "weights.part", out / "weights.pt")
        return ShardEnd.FINISHED

    def _train(self) -> float:
        """One step on a batch of 8 samples that the step alone decides."""
        batch = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1000 + self.step))
        mask = torch.rand(8, 1, generator=self.generator) < 0.9
        self.optimizer.zero_grad()
        total = torch.zeros(())
        for share in self.shares:
            inputs, kept = batch[share :: self.num_shares], mask[share :: self.num_shares]
            loss = ((self.model(inputs) - inputs.sum(-1, keepdim=True)) ** 2 * kept).sum() / 8
            loss.backward()
            total += loss.detach()
        if self.world_size > 1:
            for parameter in self.model.parameters():
                assert parameter.grad is not None
                dist.all_reduce(parameter.grad)
            dist.all_reduce(total)
        self.optimizer.step()
        return float(total)

    def _shared(self, stop: object) -> int:
        """0 to go on, 1 to stop, 2 to stop with a checkpoint: as rank 0 says."""
        said = torch.tensor([0 if stop is None else 1 + getattr(stop, "checkpoint", False)])
        if self.world_size > 1:
            dist.broadcast(said, 0)
        return int(said)

    def _checkpoint(self, report: Report) -> None:
        if self.rank == 0:
            path = self.folder / "checkpoints" / f"step-{self.step:08d}"
            partial = path.with_name(f"{path.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "step": self.step,
            }
            torch.save(state, partial / "state.pt")
            os.rename(partial, path)
            for old in JobFolder(self.folder).checkpoints()[: -self.config.checkpoints.keep]:
                shutil.rmtree(old.path)
            report(TrainCheckpointed(self.job, self.step, str(path), 0.0))
        if self.world_size > 1:
            dist.barrier()

    def _hold(self) -> None:
        is_last = self.rank == self.world_size - 1
        if is_last and (file := self.options.get(f"wait{self.step + 1}")):
            while not Path(file).exists():
                time.sleep(0.005)  # a file says nothing when it comes
        if "pace" in self.options:
            time.sleep(float(self.options["pace"]))  # so that there is time to be killed in
        if "fail" in self.options:
            step, _, kind = self.options["fail"].partition(":")
            if self.step + 1 == int(step) and is_last:
                raise _failure(kind)


def _failure(kind: str) -> Exception:
    match kind:
        case "record":
            return BadRecord("data.jsonl:7: there is no answer", hint="mend line 7")
        case "disk":
            return OSError(28, "No space left on device")
        case _:
            return ZeroDivisionError("one over nothing")


class StandinShard(Shard):
    def build(self, order: StartShard) -> Standin:
        return Standin(order)
