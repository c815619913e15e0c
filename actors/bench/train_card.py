"""The part `card` of `callboard bench train`: QLoRA of a model of LLaMA-7B's sizes, with random weights, on one card.

Each contender is alone on the card. What it holds is what NVML says is used beyond what was used before it began, so
its context counts; a framework keeps what it once took, so the end of a turn shows the most.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ...schemas.train import Method, TrainConfig
from ..models.config import LlamaConfig
from .contenders import Contender
from .errors import BenchFailed, ContenderFailed
from .generate_company import Step
from .kernels_sizes import LLAMA_7B
from .random_model import random_model
from .report import Report
from .sample_text import sample_texts
from .train_data import write_samples
from .train_rows import CARD, PROMISES, WARM_UP_STEPS, Group, TrainOptions
from .train_turns import OURS, RATE, PeerFiles, StepsTaken, TakeSteps, our_trainer, peers

GROUP = Group("qlora_7b", Method.QLORA, "bfloat16", ("trainer",))
PEAK, RATIO, CONTEXT = "qlora_7b_peak_gb", "qlora_7b_tokens_over_peft", "qlora_7b_ctx_in_8gb"
GOALS = {promise.name: promise for promise in PROMISES if promise.part == CARD}
SMALL_CARD = 8e9  # bytes
GB = 1e9

Holds = Callable[[Contender], int]
"""Bytes that a contender held at most so far, with its card's context."""


@dataclass(frozen=True)
class Lengths:
    """In tokens. `row`: of the sample that `PEAK` is about. `contexts`: rising, of those that are tried in 8 GB."""

    row: int = 2048
    contexts: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)


class CardMemory:
    """What is used of the first card beyond what was used before."""

    def __init__(self) -> None:
        self._before = _used_bytes()

    def __call__(self, contender: Contender) -> int:
        return _used_bytes() - self._before


def first_card() -> str:
    """Its number or name, as NVML knows it."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _used_bytes() -> int:
    command = ["nvidia-smi", f"--id={first_card()}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        return int(done.stdout) << 20
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise BenchFailed(f"nvidia-smi does not tell the memory of card {first_card()}: {error}") from error


@dataclass(frozen=True)
class CardBench:
    """`device`: cuda, or cpu for a check that it runs. `watch`: called before a contender begins; what it returns
    says how much that holds."""

    options: TrainOptions
    into: Path
    report: Report
    step: Step
    device: str = "cuda"
    sizes: LlamaConfig = LLAMA_7B
    lengths: Lengths = Lengths()
    watch: Callable[[], Holds] = CardMemory

    def measure(self) -> None:
        """Adds the figures and targets of the part. Raises BenchFailed, and ContenderFailed where our own trainer
        fails."""
        self.step("a random model for the card")
        folder = self.into / "random-model"
        random_model(replace(self.sizes, context_length=max(self.lengths.contexts)), folder, self.device)
        data, samples = write_samples(folder, self.into, self.options.num_samples, self.options.seed)
        config = _qlora(self.options.config(GROUP, folder, data, self.into / "card-out"))
        self._measure_memory(config)
        self._measure_rates(config, PeerFiles(folder, samples))

    def _measure_memory(self, config: TrainConfig) -> None:
        row = self.lengths.row
        peaks = {row: self._peak_at(row, config)}
        GOALS[PEAK].measured(self.report, [peaks[row] / GB])
        fits = 0
        for length in self.lengths.contexts:
            peak = peaks[length] if length in peaks else self._peak_at(length, config)
            if peak > SMALL_CARD:
                break
            fits = length
        GOALS[CONTEXT].measured(self.report, [fits])

    def _peak_at(self, length: int, config: TrainConfig) -> int:
        """Bytes that our trainer holds with rows of so many tokens."""
        self.step(f"{GROUP.name}: {length:,} tokens at once")
        batch = replace(config.batch, samples=1, max_tokens=length, micro_tokens=length)
        config = replace(config, data=str(_long_texts(self.into, length)), batch=batch)
        turns, peak = self._alone(our_trainer(config, self.into / f"card-{length}", self._env), 1, 1)
        if turns[-1].tokens != length:
            raise BenchFailed(f"the trainer took {turns[-1].tokens} tokens, not {length}")
        self.report.add(f"{GROUP.name}_peak_at_{length}.{OURS}", [peak / GB], "GB")
        return peak

    def _measure_rates(self, config: TrainConfig, files: PeerFiles) -> None:
        """Ours and peers on the samples of the other parts."""
        options, report = self.options, self.report
        ours = our_trainer(config, self.into / "card-job", self._env)
        others = peers(GROUP.peers, files, options.peer_settings(GROUP), options, self._env)
        rates: dict[str, list[float]] = {}
        for contender in (ours, *others):
            self.step(f"{GROUP.name}: {contender.name}")
            try:
                turns, peak = self._alone(contender, options.rounds, options.steps)
            except ContenderFailed as error:
                if contender is ours:
                    raise
                report.notes.append(f"{error}; {error.hint}" if error.hint else str(error))
                GOALS[RATIO].missed(report, str(error))
                return
            report.machine["versions"] |= contender.ready.versions
            rates[contender.name] = [turn.rate for turn in turns[1:]]
            report.add(f"{GROUP.name}.{contender.name}", rates[contender.name], RATE)
            report.add(f"{GROUP.name}_peak.{contender.name}", [peak / GB], "GB")
            report.add(f"{GROUP.name}_first_loss.{contender.name}", [turns[0].losses[0]], "nats")
        (peer,) = (rates[name] for name in GROUP.peers)
        GOALS[RATIO].measured(report, [mine / theirs for mine, theirs in zip(rates[OURS], peer, strict=True)])

    def _alone(self, contender: Contender, rounds: int, steps: int) -> tuple[list[StepsTaken], int]:
        """Its turns, the first of which warms up, and the bytes that it held at most."""
        holds = self.watch()
        try:
            contender.start()
            turns = [contender.ask(TakeSteps(number), StepsTaken) for number in (WARM_UP_STEPS, *[steps] * rounds)]
            return turns, holds(contender)
        finally:
            contender.close()

    @property
    def _env(self) -> dict[str, str]:
        """The card that is watched is the one that is used."""
        if self.device != "cuda":
            return {}
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": first_card()}


def _qlora(config: TrainConfig) -> TrainConfig:
    """As one trains with little memory."""
    return replace(
        config,
        optimizer=replace(config.optimizer, bits=8, paged=True),
        compute=replace(config.compute, checkpointing="full"),
    )


def _long_texts(into: Path, length: int) -> Path:
    """Documents of more bytes than `length`, so of more tokens of this model; each is cut off there."""
    path = into / f"texts-{length}.jsonl"
    text = sample_texts(2 * length, 2 * length)[0]
    while len(text) <= length + 1:
        text += text
    path.write_text("\n".join(json.dumps({"text": text[number:]}) for number in range(2)) + "\n")
    return path
