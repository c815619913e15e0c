"""What random numbers a rank draws next: kept in checkpoints, or made from numbers where there is nothing to go on
from."""

from __future__ import annotations

import io
import random
import sys
from typing import Any

import torch


def rng_state(device: torch.device) -> bytes:
    """Of torch on the CPU and on `device`, of Python's `random`, and of NumPy's global numbers where it is loaded."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(numbers), gauss]}
    if device.type == "cuda":
        state["device"] = torch.cuda.get_rng_state(device)
    if numpy := sys.modules.get("numpy"):
        name, keys, *rest = numpy.random.get_state(legacy=True)
        state["numpy"] = [name, torch.from_numpy(keys.astype("int64")), *rest]
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def set_rng_state(data: bytes, device: torch.device) -> None:
    state = torch.load(io.BytesIO(data), weights_only=True)
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if device.type == "cuda" and "device" in state:
        torch.cuda.set_rng_state(state["device"], device)
    if "numpy" in state:
        import numpy

        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, keys.numpy().astype("uint32"), *rest))


def seed_rng(seed: int, step: int, rank: int) -> None:
    """The numbers of a rank that has no state to go on from: at the beginning, and in a group of another size."""
    source = random.Random(f"{seed} {step} {rank}")
    torch.manual_seed(source.getrandbits(63))  # every device's too
    random.seed(source.getrandbits(63))
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(source.getrandbits(32))
