"""Our side of `callboard bench train`: the Trainer of a shard, run as a shard runs it.

`python -m callboard.actors.bench.train_ours CONFIG FOLDER`, CONFIG being a TrainConfig as JSON, FOLDER the job's own.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import msgspec
import torch

from ...kernels import native_training
from ...schemas.train import TrainConfig, TrainEvent, TrainProgress
from ..train.base_model import device_of, type_of
from ..train.group import alone
from ..train.shard_run import prepare_to_compute
from ..train.trainer import Trainer
from .peers_train.turns import Turns

# A square product whose operands are past the second cache, and for how long it is repeated: until the processor's
# clock is where steps of seconds have it.
SIDE = 2048
RATE_SECONDS = 0.5


def main(config: TrainConfig, folder: Path) -> None:
    prepare_to_compute(config.compute, 1)
    device = device_of(config.compute)
    trainer = Trainer.build(config, "bench", folder, alone(device))
    dtype = type_of(config.compute, device)
    base = [parameter.numel() for name, parameter in trainer.module.named_parameters() if ".lora_" not in name]

    def facts() -> dict[str, float]:
        return {"matrix_rate": matrix_rate(device, dtype), "num_parameters": float(sum(base))}

    turns = Turns(facts)

    def report(event: TrainEvent) -> None:
        if isinstance(event, TrainProgress) and not turns.step(
            event.tokens, math.nan if event.loss is None else event.loss
        ):
            sys.exit()

    if turns.ready(("torch", "transformers", "peft"), native_training.unavailable() or "native"):
        trainer.run(report, lambda: None)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large product, over half a second of them."""
    a, out = torch.ones(SIDE, SIDE, dtype=dtype, device=device), torch.empty(SIDE, SIDE, dtype=dtype, device=device)

    def multiply() -> None:
        torch.mm(a, a, out=out)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    multiply()
    began, count = time.perf_counter(), 0
    while (seconds := time.perf_counter() - began) < RATE_SECONDS:
        multiply()
        count += 1
    return 2 * SIDE**3 * count / seconds


if __name__ == "__main__":
    main(msgspec.json.decode(sys.argv[1], type=TrainConfig), Path(sys.argv[2]))
