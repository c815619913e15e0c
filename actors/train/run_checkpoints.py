"""The checkpoints of one run: written beside the training, the last few and the best kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...schemas.train import CheckpointSettings
from .checkpoint import CheckpointFailed, CheckpointWriter, PendingSave, load, prune, remove_leftovers
from .group import Group
from .rng import rng_state, set_rng_state
from .sharded import ShardedModel

Written = Callable[[int, Path, float], None]
"""Step, folder, and the seconds that it took beside the training."""

Failed = Callable[[int, CheckpointFailed], None]


class RunCheckpoints:
    """Every rank has one and makes the same calls; `written` and `failed` are called in the thread that makes them."""

    def __init__(
        self, folder: Path, group: Group, settings: CheckpointSettings, written: Written, failed: Failed
    ) -> None:
        self._folder = folder
        self._group = group
        self._settings = settings
        self._written = written
        self._failed = failed
        self._writer = CheckpointWriter(group)
        self._pending: tuple[int, PendingSave] | None = None
        self._latest = -1
        if group.rank == 0:
            remove_leftovers(folder)

    def path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}"

    def load(self, path: Path, sharded: ShardedModel) -> dict[str, Any]:
        """What `save` was given. Random numbers go on too where as many ranks wrote it."""
        loaded = load(path, sharded)
        if loaded.rank_state is not None:
            set_rng_state(loaded.rank_state, self._group.device)
        return loaded.extra

    def save(self, step: int, sharded: ShardedModel, state: dict[str, Any], best: int | None) -> None:
        """Begin to write the checkpoint of `step`, unless that was the last one. `best`: the step of the best."""
        if step == self._latest:
            return
        self.wait(best)
        self._latest = step
        rank_state = rng_state(self._group.device)
        self._pending = step, self._writer.save(self.path(step), sharded, state, rank_state)

    def poll(self, best: int | None) -> None:
        """Say so where a checkpoint has been written meanwhile."""
        if self._pending is not None and self._pending[1].done:
            self.wait(best)

    def wait(self, best: int | None) -> None:
        """Until what was begun is written or has failed. Earlier ones go once a later one is whole."""
        if self._pending is None:
            return
        (step, pending), self._pending = self._pending, None
        try:
            pending.wait()
        except CheckpointFailed as error:
            self._failed(step, error)
            return
        if self._group.rank == 0:
            prune(self._folder, self._settings.keep, {self.path(best).name} if best is not None else ())
        self._written(step, self.path(step), pending.seconds)
