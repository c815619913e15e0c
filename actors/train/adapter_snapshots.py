"""Adapters of a run that goes on: at each checkpoint one in PEFT's format, so that an engine can load what there is."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...runtime.errors import NoSuchModel
from ...schemas.train import JobState, TrainJob

if TYPE_CHECKING:
    from .group import Group
    from .sharded import ShardedModel

# The newest, and the one before it, which somebody may be reading.
KEPT = 2
_FOLDER = "adapters"
_CONFIG = "adapter_config.json"  # as in `peft_folder`, which needs torch
_NAME = re.compile(r"step-(\d{8,})")


def write_adapter_snapshot(
    folder: Path, group: Group, sharded: ShardedModel, wrapped: Any, base: Path, step: int
) -> Path:
    """Write the adapter as it is after `step` steps into `<folder>/adapters/step-%08d`, there whole or not at all, and
    remove all but the last two. Returns its place.

    `folder`: the job's own. `wrapped`: PEFT's wrapper. Every rank calls it and rank 0 writes; a run that went back to
    an earlier checkpoint replaces what it had written after it. Raises OSError.
    """
    from .adapters import save_adapter
    from .whole import whole_folder

    place = folder / _FOLDER / f"step-{step:08d}"
    tensors = {name.removeprefix("model."): tensor for name, tensor in sharded.export()}
    if group.rank == 0:
        for later in (path for number, path in _snapshots(folder) if number >= step):
            shutil.rmtree(later)
        with whole_folder(place) as making:
            save_adapter(wrapped, tensors, str(base), making)
        for _, old in _snapshots(folder)[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return place


def latest_adapter(job_folder: Path) -> Path:
    """The newest adapter of a job. Raises NoSuchModel where it has none yet, or never will have."""
    found = _snapshots(job_folder)
    if not found:
        raise NoSuchModel(
            f"{job_folder} has no adapter",
            hint="one is written at each checkpoint of a run that trains LoRA: see `checkpoints.every`",
        )
    return found[-1][1]


def adapter_of_job(job: TrainJob) -> Path:
    """What came of a job that is finished, else the newest that it has. Raises NoSuchModel."""
    out = Path(job.out)
    return out if job.state is JobState.FINISHED and is_adapter(out) else latest_adapter(Path(job.folder))


def is_adapter(path: Path) -> bool:
    return (path / _CONFIG).is_file()


def _snapshots(folder: Path) -> list[tuple[int, Path]]:
    """(step, place), the oldest first."""
    matches = [(_NAME.fullmatch(path.name), path) for path in (folder / _FOLDER).glob("step-*")]
    return sorted((int(match[1]), path) for match, path in matches if match and is_adapter(path))
