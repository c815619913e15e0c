"""The loop of one shard: a step is a plan, its micro-batches forward and backward, one agreement, one optimizer step.

What the step depends on is the configuration, the step's number and what a checkpoint holds; random numbers are drawn
from seed, step and rank. So a run that goes on from a checkpoint takes the very steps that it would have taken.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from ...schemas.train import (
    Packing,
    ShardEnd,
    StopShard,
    TrainCheckpointed,
    TrainConfig,
    TrainEvaluated,
    TrainEvent,
    TrainNote,
    TrainProgress,
    TrainSampled,
)
from ..data.templates import choose_template
from ..models.store import ModelStore
from ..models.tokenizer_loading import load_tokenizer
from . import batches
from .adapter_snapshots import write_adapter_snapshot
from .attention import packed as packed_attention
from .base_facts import base_facts
from .base_model import type_of
from .batches import MicroBatch, StepPlan, part_of, plan_step
from .building import BuiltData, BuiltModel, build_data, build_model, plan_run
from .checkpoint import CheckpointFailed
from .group import Group
from .guards import Guard, LossScale
from .hooks import Hook, build_hook
from .losses import loss_of
from .meter import Meter
from .micro_tokens import choose_micro_tokens
from .model_card import Run, card_files, results_of
from .output import About, check_output, write_output
from .reference import Reference
from .rng import seed_rng
from .run_checkpoints import RunCheckpoints
from .run_history import RunHistory
from .samples import answers
from .schedule import learning_rate
from .sharding import shard_model
from .tensorboard import TensorBoard
from .ulysses import sequence_group

Report = Callable[[TrainEvent], None]
Stop = Callable[[], StopShard | None]


class TrainerState(msgspec.Struct, frozen=True):
    """What a checkpoint holds beside tensors. `best`: the lowest evaluation loss, at `best_step`, with `since_best`
    evaluations after it."""

    step: int
    position: int
    guard: dict[str, object]
    scale: dict[str, float | int]
    best: float | None
    best_step: int | None
    since_best: int
    history: RunHistory


class Trainer:
    """`build` makes one; then `load` a checkpoint or not, and `run`. All of it in one thread.

    `folder`: of the model that training began with.
    """

    def __init__(
        self,
        config: TrainConfig,
        job: str,
        folder: Path,
        group: Group,
        model: BuiltModel,
        data: BuiltData,
        micro_tokens: int,
    ) -> None:
        self.config = config
        self.job = job
        self._job_folder = folder
        self.group = group
        self.module = model.module
        self.step = 0
        self.num_steps = data.num_steps
        self.folder = model.folder
        self._built = model
        self._stream = data.stream
        self._evaluation = data.evaluation
        self._remarks = data.remarks
        self._loss = loss_of(config.task, config.preference)
        self._reference = Reference(model, config) if self._loss.wants_reference else None
        self._dtype = next(model.model.parameters()).dtype
        self._micro_tokens = micro_tokens
        self._sequences = None
        if config.shards.sequence_parallel > 1:
            self._sequences = sequence_group(group, config.shards.sequence_parallel)
        self.sharded = shard_model(model.module, group, config)
        self._report: Report = lambda event: None
        self._checkpoints = RunCheckpoints(
            folder / "checkpoints", group, config.checkpoints, self._written, self._not_written
        )
        self._guard = Guard(config.guards)
        self._scale = LossScale(is_dynamic=self._dtype == torch.float16)
        self._meter = Meter(model.model, group.device)
        self._hooks: list[Hook] = [build_hook(settings) for settings in config.hooks]
        if config.tensorboard:
            self._hooks.append(TensorBoard(str(folder / "tensorboard")))
        self._best: float | None = None
        self._best_step: int | None = None
        self._since_best = 0
        self._history = RunHistory()

    @classmethod
    def build(cls, config: TrainConfig, job: str, folder: Path, group: Group) -> Trainer:
        """`folder`: the job's own. Raises what `build_model` and `build_data` raise, ConfigError, NotEnoughMemory."""
        check_output(Path(config.out), folder)
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        if config.compute.deterministic and group.device.type == "cuda":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        dtype = type_of(config.compute, group.device)
        plan = plan_run(config, dtype, group.device, group.world_size)
        micro_tokens = choose_micro_tokens(config, folder, plan, group)
        model = build_model(config, dtype, group.device)
        context = model.model.config.get_text_config().max_position_embeddings
        data = build_data(config, model.folder, context)
        return cls(config, job, folder, group, model, data, micro_tokens)

    def load(self, checkpoint: Path) -> None:
        """Go on from a folder that `run` wrote. Raises CheckpointDamaged, CheckpointMismatch."""
        state = msgspec.convert(self._checkpoints.load(checkpoint, self.sharded), TrainerState)
        self.step = state.step
        self._stream.seek(state.position)
        self._guard.load(state.guard)
        self._scale.load(state.scale)
        self._best, self._best_step, self._since_best = state.best, state.best_step, state.since_best
        self._history = state.history

    def run(self, report: Report, stop: Stop) -> ShardEnd:
        """Train to the end and write `config.out`, or until `stop` gives rank 0 something. Rank 0 alone calls `report`.

        Raises Diverged, CheckpointFailed where the disk is full at the end, and what hooks raise.
        """
        if self.group.rank == 0:
            self._report = report
        if self.step == 0:
            for remark in self._remarks:
                self._report(TrainNote(self.job, 0, remark))
        try:
            while self.step < self.num_steps:
                asked = self.run_step(stop)
                ended_early = self._after_step()
                if asked is not None:
                    if asked.checkpoint:
                        self._checkpoint()
                    self._checkpoints.wait(self._best_step)
                    return ShardEnd.STOPPED
                if ended_early:
                    break
            self._finish()
            return ShardEnd.FINISHED
        finally:
            for hook in self._hooks:
                hook.ended(self)

    def run_step(self, stop: Stop = lambda: None) -> StopShard | None:
        """One optimizer step; returns what rank 0 was asked to do after it, on every rank."""
        began = time.perf_counter()
        step = self.step
        for hook in self._hooks:
            hook.before_step(self, step)
        seed_rng(self.config.seed, step, self.group.rank)
        plan = self._plan(self._stream.take(self.config.batch.samples))
        micro_batches = [batch.to(self.group.device) for batch in plan.batches]
        self._loss.prepare(self.module, plan, micro_batches, self._earlier, self._sum)
        sums: dict[str, torch.Tensor] = {"loss": torch.zeros((), device=self.group.device)}
        for number, batch in enumerate(micro_batches):
            self.sharded.begin_micro_batch(last=number == len(micro_batches) - 1)
            with packed_attention(batch.cu_seqlens, self._sequences):
                part, metrics = self._loss.part(self.module, batch, plan, self._earlier)
                (part * self._scale.value).backward()
            for name, value in ("loss", part.detach()), *metrics.items():
                sums[name] = sums.get(name, 0) + value.float()
        norm = self.sharded.finish_gradients() / self._scale.value
        asked, means = self._agree(sums, stop)
        progress = self._take_step(plan, means, float(norm), began)
        self.step += 1
        self._report_progress(progress)
        return asked

    def _plan(self, items: list[batches.Item]) -> StepPlan:
        packing, shared = self.config.batch.packing, self._sequences
        if shared is None:
            return plan_step(items, self._micro_tokens, packing, self.group.rank, self.group.world_size)
        # Ranks that share sequences have the same, each a part of the tokens.
        num_parts = self.group.world_size // shared.size
        plan = plan_step(items, self._micro_tokens * shared.size, packing, shared.number, num_parts)
        return replace(plan, batches=tuple(part_of(batch, shared.rank, shared.size) for batch in plan.batches))

    def _agree(self, sums: dict[str, torch.Tensor], stop: Stop) -> tuple[StopShard | None, dict[str, float]]:
        """Add up what the ranks found, in one exchange with what rank 0 was asked."""
        wanted = stop() if self.group.rank == 0 else None
        flag = 0.0 if wanted is None else 2.0 if wanted.checkpoint else 1.0
        # Metrics of tasks with pairs are missing on a rank whose only batch was empty.
        names = ("loss", *(("accuracy", "margin", "chosen", "rejected") if self._loss.is_pairs else ()))
        zero = torch.zeros((), device=self.group.device)
        values = torch.stack([torch.full_like(zero, flag), *(sums.get(name, zero).reshape(()) for name in names)])
        flag, *means = self._sum(values).tolist()
        asked = StopShard(checkpoint=flag == 2) if flag else None
        return asked, dict(zip(names, means, strict=True))

    def _take_step(self, plan: StepPlan, means: dict[str, float], norm: float, began: float) -> TrainProgress:
        """`began`: the clock at the step's beginning, so that what is told of its time is all of it."""
        settings = self.config.optimizer
        rate = learning_rate(settings, self.step, self.num_steps)
        loss = means.pop("loss")
        if self._scale.overflowed(norm):
            skipped = f"gradients overflowed float16; the loss scale is now {self._scale.value:g}"
        else:
            skipped = self._guard.why_skip(loss, norm)
        if skipped:
            self.sharded.drop_gradients()
        else:
            clip = settings.max_grad_norm / (norm + 1e-6) if settings.max_grad_norm else 1.0
            scale = min(1.0, clip) / self._scale.value
            self.sharded.step(rate, torch.tensor(scale, dtype=torch.float32, device=self.group.device))
        return TrainProgress(
            job=self.job,
            step=self.step + 1,
            num_steps=self.num_steps,
            loss=_finite(loss),
            lr=rate,
            grad_norm=_finite(norm),
            tokens=plan.num_tokens,
            loss_tokens=plan.num_loss_tokens,
            skipped=skipped,
            metrics=tuple((name, value) for name, value in means.items() if value),
            **self._meter.step(
                plan, time.perf_counter() - began, self.num_steps - self.step - 1, self.group.world_size
            ),
        )

    def _report_progress(self, progress: TrainProgress) -> None:
        self._history.progressed(progress)
        self._report(progress)
        for hook in self._hooks:
            hook.after_step(self, progress)

    def _after_step(self) -> bool:
        """What is due at intervals; whether the run is to end because it gets no better."""
        config, done = self.config, self.step
        self._checkpoints.poll(self._best_step)
        at_end = done == self.num_steps
        ended = False
        if self._evaluation and config.evaluation.every and (done % config.evaluation.every == 0 or at_end):
            ended = self._evaluate()
        if config.samples.prompts and config.samples.every and (done % config.samples.every == 0 or at_end):
            self._sample()
        if config.checkpoints.every and done % config.checkpoints.every == 0 and not at_end:
            self._checkpoint()
        return ended

    def _evaluate(self) -> bool:
        loss = self.evaluation_loss()
        best = self._best is None or loss < self._best
        self._since_best += 1
        if best:
            self._best, self._best_step, self._since_best = loss, self.step, 0
        result = TrainEvaluated(self.job, self.step, loss, best)
        self._history.evaluated(self.step, loss)
        self._report(result)
        for hook in self._hooks:
            hook.evaluated(self, result)
        if best and self.config.checkpoints.keep_best and self.config.checkpoints.every:
            self._checkpoint()
        patience = self.config.evaluation.patience
        if patience and self._since_best >= patience:
            self._report(TrainNote(self.job, self.step, f"no better for {patience} evaluations, so the run ends here"))
            return True
        return False

    def evaluation_loss(self) -> float:
        """The mean loss over the evaluation's samples, as training counts it. Every rank calls it."""
        self.module.eval()
        plan = self._plan(self._evaluation)
        moved = [batch.to(self.group.device) for batch in plan.batches]
        total = torch.zeros((), device=self.group.device)
        with torch.no_grad():
            self._loss.prepare(self.module, plan, moved, self._earlier, self._sum)
            for batch in moved:
                with packed_attention(batch.cu_seqlens, self._sequences):
                    total += self._loss.part(self.module, batch, plan, self._earlier)[0].float()
        self.module.train()
        return float(self._sum(total))

    def _sample(self) -> None:
        tokenizer = load_tokenizer(self._built.folder)
        settings = self.config.samples
        texts = answers(
            self.module,
            tokenizer,
            choose_template(tokenizer, self.config.batch.template),
            settings.prompts,
            settings.max_tokens,
            self.group.device,
            is_packed=self.config.batch.packing is Packing.PACKED,
        )
        for prompt, text in zip(settings.prompts, texts, strict=True):
            sample = TrainSampled(self.job, self.step, prompt, text)
            self._report(sample)
            for hook in self._hooks:
                hook.sampled(self, sample)

    def _checkpoint(self) -> None:
        state = TrainerState(
            step=self.step,
            position=self._stream.position,
            guard=self._guard.state(),
            scale=self._scale.state(),
            best=self._best,
            best_step=self._best_step,
            since_best=self._since_best,
            history=self._history,
        )
        spared = self._best_step if self.config.checkpoints.keep_best else None
        self._checkpoints.save(self.step, self.sharded, msgspec.to_builtins(state), spared)
        if self._built.wrapped is not None:
            self._snapshot()

    def _snapshot(self) -> None:
        """The adapter as it is, for engines that load it while it is trained."""
        try:
            write_adapter_snapshot(
                self._job_folder, self.group, self.sharded, self._built.wrapped, self.folder, self.step
            )
        except OSError as error:
            self._report(TrainNote(self.job, self.step, f"the adapter of this step could not be written: {error}"))

    def _written(self, step: int, path: Path, seconds: float) -> None:
        self._report(TrainCheckpointed(self.job, step, str(path), seconds))
        for hook in self._hooks:
            hook.checkpointed(self, path)

    def _not_written(self, step: int, error: CheckpointFailed) -> None:
        """The run goes on: the last whole checkpoint stays, and there may be room for the next one."""
        self._report(TrainNote(self.job, step, str(error)))

    def _finish(self) -> None:
        self._checkpoints.wait(self._best_step)
        best = self._best_step
        if self.config.evaluation.patience and best is not None and best != self.step:
            path = self._checkpoints.path(best)
            if self.config.checkpoints.keep_best and self.config.checkpoints.every:
                self._checkpoints.load(path, self.sharded)
                self._report(TrainNote(self.job, self.step, f"the weights are those of step {best}, the best"))
        run = Run(self.step, self._stream.num_samples, len(self._evaluation), self._history, self._best)
        write_output(
            About(str(self._job_folder), self.step, self.config, results_of(self.config, run)),
            self.group,
            self.sharded,
            self._built.model,
            self._built.wrapped,
            self._built.folder,
            card_files(self.config, run, base_facts(self.config.model, ModelStore().path(self.config.model))),
        )

    def _earlier(self, batch: MicroBatch) -> torch.Tensor:
        assert self._reference is not None
        with torch.no_grad(), packed_attention(batch.cu_seqlens, self._sequences):
            return self._reference(batch)

    def _sum(self, values: torch.Tensor) -> torch.Tensor:
        if self.group.mesh is not None:
            dist.all_reduce(values, group=self.group.mesh.get_group())
        return values


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
