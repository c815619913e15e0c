"""What a shard keeps in memory at each stage of ZeRO, beside one that trains alone, and beside the formula.

`python -m callboard.actors.bench.train_zero CONFIG FOLDER RANK STORE` is one shard: it takes a step and prints what it
keeps. Each stage is processes of its own, which meet over gloo, or NCCL where there is a card for each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from ...runtime.processes import dying_with_us
from ...schemas.train import Method, ShardSettings, TrainConfig
from .errors import ContenderFailed
from .generate_company import Step
from .report import Report
from .train_rows import GROUPS, TrainOptions

STAGES = (1, 2, 3)
WORLD_SIZE = 2
TIMEOUT_S = 600.0


class Kept(msgspec.Struct, frozen=True):
    """Bytes of model, gradients and optimizer, after a step."""

    measured: float
    formula: float


def measure_zero(options: TrainOptions, folder: Path, data: Path, into: Path, report: Report, step: Step) -> None:
    """Adds both figures and targets. Raises ContenderFailed."""
    group = GROUPS["full"]
    assert group.method is Method.FULL
    base = options.config(group, folder, data, into / "zero-out")
    if torch.cuda.device_count() < WORLD_SIZE:
        base = replace(base, compute=replace(base.compute, device="cpu"))

    def shards(count: int, stage: int) -> list[Kept]:
        step(f"{count} shard{'s' * (count > 1)} at stage {stage}")
        config = replace(base, shards=ShardSettings(count=count, zero=stage))
        return _run(config, into / f"zero-{count}-{stage}", count)

    alone = shards(1, 1)[0]
    mib = 1 << 20
    report.add("state.alone", [alone.measured / mib], "MiB")
    errors: list[float] = []
    for stage in STAGES:
        kept = shards(WORLD_SIZE, stage)
        report.add(f"state.zero{stage}", [each.measured / mib for each in kept], "MiB")
        report.add(f"state_by_formula.zero{stage}", [each.formula / mib for each in kept], "MiB")
        errors += [abs(each.measured - each.formula) / each.measured for each in kept]
        if stage == max(STAGES):
            shares = [each.measured / alone.measured for each in kept]
            report.add_target("zero3_state_share", 0.55, "share", [max(shares)], at_most=True)
    report.add_target("zero_memory_error", 0.05, "share", [max(errors)], at_most=True)


def _run(config: TrainConfig, folder: Path, count: int) -> list[Kept]:
    folder.mkdir()
    encoded, store = msgspec.json.encode(config).decode(), str(folder / "store")
    shards = [
        subprocess.Popen(
            dying_with_us([sys.executable, "-P", "-m", __name__, encoded, str(folder), str(rank), store]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [shard.communicate(timeout=TIMEOUT_S) for shard in shards]
    except subprocess.TimeoutExpired as error:
        raise ContenderFailed(f"the shards took over {TIMEOUT_S:g} s") from error
    finally:
        for shard in shards:
            shard.kill()
            shard.wait()
    for shard, (_, errors) in zip(shards, said, strict=True):
        if shard.returncode:
            last = [line for line in errors.splitlines() if line.strip()][-1:] or ["it said nothing"]
            raise ContenderFailed(f"a shard ended with status {shard.returncode}: {last[0]}")
    return [msgspec.json.decode(out.splitlines()[-1], type=Kept) for out, _ in said]


def shard(config: TrainConfig, folder: Path, rank: int, store: str) -> Kept:
    from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

    from ..train.base_model import device_of, type_of
    from ..train.building import build_data, build_model, plan_run
    from ..train.group import alone, leave, meet
    from ..train.memory import Sizes, by_formula
    from ..train.micro_tokens import choose_micro_tokens
    from ..train.trainer import Trainer

    count = config.shards.count
    device = device_of(config.compute, rank)
    if device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // count))
    group = alone(device) if count == 1 else meet(FileStore(store, count), rank, count, device)
    dtype = type_of(config.compute, device)
    micro_tokens = choose_micro_tokens(config, folder, plan_run(config, dtype, device, count), group)
    model = build_model(config, dtype, device)
    sizes = Sizes.of(model.module)
    data = build_data(config, model.folder, model.model.config.get_text_config().max_position_embeddings)
    trainer = Trainer(config, "bench", folder, group, model, data, micro_tokens)
    trainer.run_step()
    kept = Kept(trainer.sharded.memory().total, by_formula(sizes, config, count).total)
    leave(group)
    return kept


if __name__ == "__main__":
    given, where, number, store_path = sys.argv[1:]
    kept = shard(msgspec.json.decode(given, type=TrainConfig), Path(where), int(number), store_path)
    print(msgspec.json.encode(kept).decode(), flush=True)
