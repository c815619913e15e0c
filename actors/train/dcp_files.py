"""A state on disk in the format of torch.distributed.checkpoint, by its own planner and writer.

The steps of its `save` and `load` are done here one by one, over a group of our choice: their own run in a group of one
only with a warning, and raise what is no Exception.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.tensor import DTensor

from .group import Group
from .rows import spread

T = TypeVar("T")


def gather(value: T, group: Group) -> list[T]:
    """Every rank's value, on every rank, over the group beside the training."""
    if group.side is None:
        return [value]
    values: list[Any] = [None] * group.world_size
    dist.all_gather_object(values, value, group=group.side)
    return values


def copy_of(state: dict[str, Any], group: Group) -> dict[str, Any]:
    """The state in the host's memory, where training does not change it any more."""
    copied: dict[str, Any] = {}
    with torch.no_grad():
        for name, tensor in state.items():
            if isinstance(tensor, DTensor):
                copied[name] = spread(tensor.to_local().to("cpu", copy=True), tensor.shape, _on_host(group))
            else:
                copied[name] = tensor.detach().to("cpu", copy=True)
    return copied


def write(state: dict[str, Any], folder: Path, group: Group) -> None:
    """`state`: flat, of tensors in the host's memory. Every rank writes its own file, synced to the disk; rank 0 writes
    what is where, once all have told.

    A rank that cannot write takes part in the exchange all the same, and raises then; the others return, and nothing
    says what is where: whoever calls this finds out together whether all is well.
    """
    planner, writer = DefaultSavePlanner(), FileSystemWriter(folder, overwrite=False)
    is_coordinator = group.rank == 0
    planner.set_up_planner(state, writer.storage_meta(), is_coordinator)
    writer.set_up_storage_writer(is_coordinator)
    # What is written by several is found out by each for itself, in the same way.
    plans, metadata = planner.create_global_plan(gather(planner.create_local_plan(), group))
    plan = planner.finish_plan(writer.prepare_global_plan(plans)[group.rank])
    error: Exception | None = None
    results: Any = None
    try:
        results = writer.write_data(plan, planner).wait()
    except Exception as failure:
        error = failure
    everyone = gather(results, group)
    if error is not None:
        raise error
    if is_coordinator and None not in everyone:
        writer.finish(metadata, everyone)


def read(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `state` in place, each rank its own part. KeyError for what the folder does not have."""
    planner, reader = DefaultLoadPlanner(), FileSystemReader(folder)
    metadata = reader.read_metadata()
    if missing := sorted(set(state) - set(metadata.state_dict_metadata)):
        raise KeyError(missing[0])
    planner.set_up_planner(state, metadata, False)
    reader.set_up_storage_reader(metadata, False)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    plan = planner.finish_plan(reader.prepare_global_plan(planner.create_global_plan([plan]))[0])
    reader.read_data(plan, planner).wait()


def _on_host(group: Group) -> Group:
    return Group(group.rank, group.world_size, torch.device("cpu"), group.host_mesh, group.host_mesh, group.side)
