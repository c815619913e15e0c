"""Events of runs as trainers tell them, for tests of what watches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path

import msgspec

from callboard.schemas.train import TrainEvaluated, TrainEvent, TrainProgress


def progress(job: str, step: int, loss: float, num_steps: int = 100, **changes: object) -> TrainProgress:
    values = {
        "lr": 1e-4 * (1 - step / num_steps),
        "grad_norm": 1 + 1 / step,
        "tokens": 900,
        "loss_tokens": 400,
        "tokens_per_s": 800.0,
        "memory_bytes": 3 << 30,
        "eta_s": 5.0,
    }
    fields = {"job": job, "step": step, "num_steps": num_steps, "loss": loss, **values, **changes}
    return msgspec.convert(fields, TrainProgress)


def run_events(job: str, num_steps: int = 100, seed: int = 0) -> list[TrainEvent]:
    """A loss that falls from about 3 with some noise, evaluated at every tenth step."""
    rng = random.Random(seed)
    events: list[TrainEvent] = []
    for step in range(1, num_steps + 1):
        events.append(progress(job, step, 0.5 + 2.5 * math.exp(-3 * step / num_steps) + rng.gauss(0, 0.1), num_steps))
        if step % 10 == 0:
            events.append(TrainEvaluated(job, step, 0.6 + 2.5 * math.exp(-3 * step / num_steps), True))
    return events


def write_events(path: Path, events: Iterable[TrainEvent], rest: bytes = b"") -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events) + rest)
    return path
