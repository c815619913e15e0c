"""The processes that `callboard bench train` holds against each other, and their turns of a few steps."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...kernels.threads import process_env
from ...schemas.train import TrainConfig
from .contenders import Contender
from .train_rows import TrainOptions

RATE = "tokens/s"
OURS = "ours"


class TakeSteps(msgspec.Struct, frozen=True):
    steps: int


class StepsTaken(msgspec.Struct, frozen=True):
    """`losses`: of each step. `matrix_rate`, operations/s, and `num_parameters` of the model: what only we say."""

    seconds: float
    tokens: int
    losses: tuple[float, ...]
    matrix_rate: float = 0.0
    num_parameters: float = 0.0

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def our_trainer(config: TrainConfig, job: Path, env: Mapping[str, str] | None = None) -> Contender:
    """`job`: a folder for what a run keeps. The process waits for its threads as a shard's does."""
    encoded = msgspec.json.encode(config).decode()
    command = [sys.executable, "-P", "-m", f"{__package__}.train_ours", encoded, str(job)]
    return Contender(OURS, command, {**process_env(), **(env or {})})


@dataclass(frozen=True)
class PeerFiles:
    """What peers read: the model's folder, and the tokens."""

    folder: Path
    samples: Path


def peers(
    names: Iterable[str],
    files: PeerFiles,
    settings: Mapping[str, object],
    options: TrainOptions,
    env: Mapping[str, str] | None = None,
) -> Iterator[Contender]:
    """Those whose Python is there."""
    programs = {"trainer": ("train_transformers", Path(sys.executable)), "trl": ("train_trl", options.trl_python)}
    # As many threads as ours has.
    threads = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    for name in names:
        program, python = programs[name]
        if python is not None:
            path = Path(__file__).with_name("peers_train") / f"{program}.py"
            arguments = [str(files.folder), str(files.samples), msgspec.json.encode(settings).decode()]
            yield Contender(name, [str(python), str(path), *arguments], {**threads, **(env or {})})
