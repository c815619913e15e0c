"""`callboard bench train`: our trainer beside plain trainers, on the same samples with the same settings.

Every contender is a process of its own that keeps training and waits after each turn of a few steps. They take turns
within each round, one at a time, and a ratio is taken in each round. A rate is of useful tokens: those that are no
padding, with loss or without. Memory is the most that a process held at once.

`lora_matmul_share`: four operations for each parameter of the model and token (its products forward, and backward for
their inputs), over what a large bfloat16 product makes in the same process right before and after the turn. Logits of
tokens without loss, which nobody needs, count as if they had been made; the products of the adapter and attention's do
not count.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .contenders import Contender
from .errors import BenchFailed, ContenderFailed
from .generate_company import Step
from .machine import machine_facts
from .model_folder import model_folder
from .report import Report
from .train_card import CardBench
from .train_data import write_samples
from .train_rows import CARD, GROUPS, PROMISES, WARM_UP_STEPS, ZERO, Group, TrainOptions
from .train_turns import OURS, RATE, PeerFiles, StepsTaken, TakeSteps, our_trainer, peers
from .train_zero import measure_zero

OPERATIONS = 4  # of a frozen parameter and a token
NO_TRL = "trl was left out: --trl-python names the Python that has it"


@dataclass
class Shown:
    """What a group's contenders have shown, a turn a round, and who dropped out and why."""

    turns: dict[str, list[StepsTaken]] = field(default_factory=dict)
    first_losses: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def run(options: TrainOptions, step: Step) -> Report:
    """Measure all of it. Peers that fail are noted, and their targets say why. Raises ContenderFailed where our own
    trainer fails, and what making the samples raises."""
    report = Report("train", machine_facts("torch", "transformers", "peft"))
    step("the model as everyone reads it")
    folder = model_folder(options.model)
    report.machine |= {"model": options.model.stem, "samples": options.samples, "rows": options.rows}
    with tempfile.TemporaryDirectory(prefix="callboard-bench-") as temporary:
        into = Path(temporary)
        step("the samples")
        data, samples = write_samples(folder, into, options.num_samples, options.seed)
        for name, group in GROUPS.items():
            if name in options.parts:
                shown = _measure(options, group, (folder, data, samples, into), report, step)
                _report_group(group, shown, report)
        if ZERO in options.parts:
            measure_zero(options, folder, data, into, report, step)
        why_no_card = _measure_card(options, into, report, step)
    for promise in PROMISES:
        if promise.name not in report.targets:
            left_out = f"the part {promise.part} was left out"
            promise.missed(report, why_no_card or left_out if promise.part == CARD else left_out)
    report.targets = {promise.name: report.targets[promise.name] for promise in PROMISES}
    return report


def _measure_card(options: TrainOptions, into: Path, report: Report, step: Step) -> str:
    """Returns why nothing was measured, empty where it was."""
    if not torch.cuda.is_available():
        return "there is no GPU here"
    if CARD not in options.parts:
        return ""
    CardBench(options, into, report, step).measure()
    return ""


def _measure(
    options: TrainOptions, group: Group, files: tuple[Path, Path, Path, Path], report: Report, step: Step
) -> Shown:
    shown = Shown()
    with ExitStack() as stack:
        company: list[Contender] = []

        def lose(contender: Contender, error: BenchFailed) -> None:
            if contender.name == OURS:
                raise error
            report.notes.append(f"{error}; {error.hint}" if error.hint else str(error))
            shown.lost[contender.name] = str(error)
            shown.turns.pop(contender.name, None)
            if contender in company:
                company.remove(contender)

        def turn(contender: Contender, steps: int) -> StepsTaken | None:
            try:
                return contender.ask(TakeSteps(steps), StepsTaken)
            except ContenderFailed as error:
                lose(contender, error)
                return None

        folder, data, samples, into = files
        config = options.config(group, folder, data, into / f"{group.name}-out")
        settings, reads = options.peer_settings(group), PeerFiles(folder, samples)
        ours = our_trainer(config, into / f"{group.name}-job")
        for contender in (ours, *peers(group.peers, reads, settings, options)):
            step(f"{group.name}: {contender.name} loads its model")
            stack.callback(contender.close)
            try:
                contender.start()
            except ContenderFailed as error:
                lose(contender, error)
                continue
            company.append(contender)
            report.machine["versions"] |= contender.ready.versions
            if contender.ready.kernels:
                report.machine["kernels"] = contender.ready.kernels
            if first := turn(contender, WARM_UP_STEPS):
                shown.first_losses[contender.name] = first.losses[0]
        for number in range(options.rounds):
            for contender in company[:: 1 if number % 2 == 0 else -1]:
                step(f"{group.name}: {contender.name}, round {number + 1} of {options.rounds}")
                if taken := turn(contender, options.steps):
                    shown.turns.setdefault(contender.name, []).append(taken)
        shown.peaks = {contender.name: float(contender.peak_bytes) for contender in company}
    return shown


def _report_group(group: Group, shown: Shown, report: Report) -> None:
    for name, turns in shown.turns.items():
        report.add(f"{group.name}.{name}", [turn.rate for turn in turns], RATE)
        report.add(f"{group.name}_peak_memory.{name}", [shown.peaks[name] / (1 << 20)], "MiB")
    for name, loss in shown.first_losses.items():
        report.add(f"{group.name}_first_loss.{name}", [loss], "nats")
    ours = shown.turns[OURS]
    shares = [OPERATIONS * turn.num_parameters * turn.rate / turn.matrix_rate for turn in ours]
    found: dict[str, list[float]] = {f"{group.name}_matmul_share": shares}
    for name, suffix in (("trainer", "trainer"), ("trl", "trl_packed")):
        if name in shown.turns:
            pairs = zip(ours, shown.turns[name], strict=True)
            found[f"{group.name}_tokens_over_{suffix}"] = [mine.rate / theirs.rate for mine, theirs in pairs]
            found[f"{group.name}_memory_over_{suffix}"] = [shown.peaks[OURS] / shown.peaks[name]]
    promises = {promise.name: promise for promise in PROMISES if promise.part == group.name}
    for name, values in found.items():
        if promise := promises.pop(name, None):
            promise.measured(report, values)
        else:
            report.add(name, values, "share" if name.endswith("share") else "x")
    for name, promise in promises.items():
        peer = "trl" if "trl" in name else "trainer"
        promise.missed(report, shown.lost.get(peer, NO_TRL))
