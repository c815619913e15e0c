"""A run's events as curves over its steps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from ...runtime.curves import StepCurves
from ...runtime.messages import UNDECODABLE
from ...schemas.train import TrainEvaluated, TrainEvent, TrainProgress
from .errors import NoSuchJob

EVALUATION = "evaluation"
MEASURED = ("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes")
"""Curves of every run, by their field of `TrainProgress`. `EVALUATION` and a task's own metrics come to them."""

_decoder = msgspec.json.Decoder(TrainEvent)


class JobHistory(StepCurves):
    """What a run said so far; `add` goes on with it while it runs."""

    def __init__(self, job: str, events: Iterable[TrainEvent] = ()) -> None:
        super().__init__()
        self.job = job
        self.skipped: dict[int, str] = {}
        """Steps that changed nothing, and why. A step whose loss was no finite number is among them."""
        for event in events:
            self.add(event)

    def add(self, event: TrainEvent) -> None:
        match event:
            case TrainProgress():
                self.step(event.step)
                if event.skipped:
                    self.skipped[event.step] = event.skipped
                for name in MEASURED:
                    self.note(name, event.step, getattr(event, name))
                for name, value in event.metrics:
                    self.note(name, event.step, value)
            case TrainEvaluated():
                self.note(EVALUATION, event.step, event.loss)
            case _:
                pass

    def forget(self, first: int) -> None:
        """What is said of a step comes after its progress, and before the next step's."""
        super().forget(first)
        for step in [step for step in self.skipped if step >= first]:
            del self.skipped[step]


def read_history(job: str, path: Path) -> JobHistory:
    """From a file of events, JSON lines; of a running job what is there. Raises NoSuchJob where there is none."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise NoSuchJob(f"{path} is not there") from None
    history = JobHistory(job)
    for line in lines:
        if not line.strip():
            continue
        try:
            history.add(_decoder.decode(line))
        except UNDECODABLE:
            continue  # the line that its writer was killed over
    return history
