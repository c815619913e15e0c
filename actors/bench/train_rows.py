"""What `callboard bench train` measures: who trains beside whom, with which settings, and the promises about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...schemas.train import (
    BatchSettings,
    CheckpointSettings,
    ComputeSettings,
    LoraSettings,
    Method,
    OptimizerSettings,
    TrainConfig,
)
from .report import Report

# Of one sample, drawn evenly.
LEAST_TOKENS, MOST_TOKENS = 20, 400
# Of a row that TRL packs; so many rows are about as many tokens as the others' samples.
PACKED_TOKENS = 1024
RANK, ALPHA = 16, 32
LR = 2e-4
# Of everyone: steps with nothing measured.
WARM_UP_STEPS = 1


@dataclass(frozen=True)
class Group:
    """Contenders that take turns. `precision`: of everyone's products. `peers`: others, the plain trainer first."""

    name: str
    method: Method
    precision: str
    peers: tuple[str, ...]


GROUPS: Mapping[str, Group] = {
    group.name: group
    for group in (
        Group("lora", Method.LORA, "bfloat16", ("trainer", "trl")),
        Group("full", Method.FULL, "bfloat16", ("trainer",)),
        Group("lora_float32", Method.LORA, "float32", ("trainer",)),
    )
}
# Beside the groups: two shards against one, and a large model on a card.
ZERO, CARD = "zero", "card"
PARTS = (*GROUPS, ZERO, CARD)


@dataclass(frozen=True)
class Promise:
    """`part`: what it is found in."""

    name: str
    goal: float
    unit: str
    part: str
    at_most: bool = False

    def measured(self, report: Report, values: Sequence[float]) -> None:
        report.add_target(self.name, self.goal, self.unit, values, at_most=self.at_most)

    def missed(self, report: Report, why: str) -> None:
        report.miss_target(self.name, self.goal, self.unit, why, at_most=self.at_most)


PROMISES = (
    Promise("lora_tokens_over_trainer", 1.6, "x", "lora"),
    Promise("lora_tokens_over_trl_packed", 2.0, "x", "lora"),
    Promise("lora_memory_over_trainer", 0.6, "x", "lora", at_most=True),
    Promise("lora_matmul_share", 0.7, "share", "lora"),
    Promise("full_tokens_over_trainer", 1.4, "x", "full"),
    Promise("zero3_state_share", 0.55, "share", ZERO, at_most=True),
    Promise("zero_memory_error", 0.05, "share", ZERO, at_most=True),
    Promise("qlora_7b_peak_gb", 5.5, "GB", CARD, at_most=True),
    Promise("qlora_7b_tokens_over_peft", 2.0, "x", CARD),
    Promise("qlora_7b_ctx_in_8gb", 8192, "tokens", CARD),
)


@dataclass(frozen=True)
class TrainOptions:
    """`steps` of a turn, `rounds` turns each. `samples` of a step; the plain trainer takes `rows` of them at once.
    `trl_python`: the Python that has TRL. `micro_tokens`, `threads`: as of our configuration, 0 to choose."""

    model: Path
    parts: tuple[str, ...] = PARTS
    rounds: int = 3
    steps: int = 2
    samples: int = 16
    rows: int = 4
    seed: int = 0
    trl_python: Path | None = None
    micro_tokens: int = 0
    threads: int = 0

    def quick(self) -> TrainOptions:
        """A check that all of it runs, not a measurement."""
        return replace(self, rounds=1, steps=1, samples=4, rows=2)

    @property
    def num_samples(self) -> int:
        return (WARM_UP_STEPS + self.rounds * self.steps) * self.samples

    def config(self, group: Group, folder: Path, data: Path, out: Path) -> TrainConfig:
        """Ours: as users have it, but for what all have alike."""
        return TrainConfig(
            model=str(folder),
            data=str(data),
            out=str(out),
            method=group.method,
            steps=1_000_000,
            seed=self.seed,
            tensorboard=False,
            lora=LoraSettings(rank=RANK, alpha=ALPHA),
            batch=BatchSettings(samples=self.samples, max_tokens=MOST_TOKENS, micro_tokens=self.micro_tokens),
            optimizer=OptimizerSettings(lr=LR, schedule="constant", warmup=0.0),
            compute=ComputeSettings(precision=group.precision, threads=self.threads),
            checkpoints=CheckpointSettings(every=0),
        )

    def peer_settings(self, group: Group) -> dict[str, object]:
        return {
            "precision": group.precision,
            "rank": 0 if group.method is Method.FULL else RANK,
            "four_bits": group.method is Method.QLORA,
            "alpha": ALPHA,
            "lr": LR,
            "samples": self.samples,
            "rows": self.rows,
            "row_tokens": PACKED_TOKENS,
        }
