"""What the ranks of a group do in these tests: a whole run, as the shards of a job do."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from callboard.actors.train.group import leave, meet
from callboard.actors.train.trainer import Trainer
from callboard.schemas.train import TrainConfig, TrainEvent, TrainProgress


def run_together(rank: int, world_size: int, store: str, config: TrainConfig, folder: Path) -> list[TrainProgress]:
    group = meet(FileStore(store, world_size), rank, world_size, torch.device("cpu"))
    try:
        events: list[TrainEvent] = []
        Trainer.build(config, "job", folder, group).run(events.append, lambda: None)
        return [event for event in events if isinstance(event, TrainProgress)]
    finally:
        leave(group)
