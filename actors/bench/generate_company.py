"""Who is measured by `callboard bench generate`, what each has shown so far, and who has dropped out and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from .contenders import BatchAnswer, Contender, StepTimes
from .errors import BenchFailed, ContenderFailed
from .generate_orders import PeerBatch, RunBatch
from .generate_rows import HOW_TO_NAME, GenerateOptions, Row
from .report import Report

OURS = "ours_"

Step = Callable[[str], None]


@dataclass
class Samples:
    """One contender in one row: a figure for each round, in step with the other contenders' of that row."""

    rate: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    ttft_ms: list[float] = field(default_factory=list)
    times: list[StepTimes] = field(default_factory=list)
    first_tokens: list[int] = field(default_factory=list)


class Company:
    """The contenders that are still in the run. One that fails leaves it with all its figures, and a note says why: so
    rounds stay in step, and nothing is measured against half of a peer."""

    def __init__(self, options: GenerateOptions, vocab_size: int, report: Report, step: Step) -> None:
        self.options = options
        self.vocab_size = vocab_size
        self.report = report
        self.step = step
        self.contenders: dict[str, Contender] = {}
        self.samples: dict[str, dict[str, Samples]] = {row.name: {} for row in options.rows}
        self._lost: dict[str, str] = {}
        self._seeds = itertools.count(1)

    def start(self, contender: Contender, stack: ExitStack) -> None:
        """Start a contender, which `stack` ends."""
        self.step(f"{contender.name} loads its model")
        stack.callback(contender.close)
        try:
            contender.start()
        except ContenderFailed as error:
            self.lose(contender.name, error)
        else:
            self.contenders[contender.name] = contender

    def lose(self, name: str, error: BenchFailed) -> None:
        self.report.notes.append(f"{error}; {error.hint}" if error.hint else str(error))
        self._lost[name] = str(error)
        self.contenders.pop(name, None)
        for kept in self.samples.values():
            kept.pop(name, None)

    def why_lost(self, name: str) -> str:
        """Why a contender is not in the run; empty if it is."""
        if name in self.contenders:
            return ""
        if name in self._lost:
            return self._lost[name]
        if name.startswith(OURS):
            return f"our engine was not run in {name.removeprefix(OURS)}"
        return f"{name} was left out: {HOW_TO_NAME[name]}"

    def of(self, row: Row) -> list[Contender]:
        names = [*(OURS + weights for weights in row.weights), *row.peers]
        return [self.contenders[name] for name in names if name in self.contenders]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.options.rows if row.name == name), None)

    def next_seed(self) -> int:
        """Prompts that nobody has seen."""
        return next(self._seeds)

    def batch(
        self, contender: Contender, row: Row, *, output: int, seed: int, deterministic: bool = False
    ) -> BatchAnswer:
        """Raises ContenderFailed, also where a contender left tokens out."""
        sizes = (row.size, row.prompt, output, seed, self.vocab_size)
        ours = contender.name.startswith(OURS)
        order = RunBatch(*sizes, deterministic=deterministic) if ours else PeerBatch(*sizes)
        answer = contender.ask(order, BatchAnswer)
        if answer.lengths != (output,) * row.size:
            raise ContenderFailed(
                f"the contender {contender.name} answered {row.size} prompts with {sum(answer.lengths)} tokens in all, "
                f"where each should have {output}"
            )
        return answer
