"""A hook that holds a run after some of its steps until a file is there, so that a test can do something meanwhile.

It lies in the PYTHONPATH of the processes that train.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from callboard.actors.train.hooks import Hook
from callboard.actors.train.trainer import Trainer


@dataclass
class Gates(Hook):
    """After each of `steps` the last rank waits for the file of that number in `folder`; the others wait for it."""

    folder: str
    steps: list[int]

    def before_step(self, trainer: Trainer, step: int) -> None:
        is_last = trainer.group.rank == trainer.group.world_size - 1
        while is_last and step in self.steps and not (Path(self.folder) / str(step)).exists():
            time.sleep(0.005)  # a file says nothing when it comes
