"""The processes that train one model together, as one of them sees them."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

# How long a collective waits for a rank that lives but does not come. One that died is noticed at once, by its
# connections; what takes long is a rank that writes a checkpoint or evaluates while the others wait for it.
PATIENCE = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """`mesh` is one-dimensional, over all ranks; None for a group of one, which needs no torch.distributed.

    `host_mesh`: the same ranks for what lies in the host's memory (`mesh` itself where that is the device). `side`: a
    group of its own over gloo for what goes on beside the training, so that a thread's collectives never meet the
    step's.
    """

    rank: int
    world_size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    host_mesh: DeviceMesh | None = None
    side: dist.ProcessGroup | None = None

    def mesh_of(self, device: torch.device) -> DeviceMesh | None:
        return self.mesh if device.type == self.device.type else self.host_mesh


def alone(device: torch.device) -> Group:
    return Group(0, 1, device)


def join(rank: int, world_size: int, host: str, port: int, device: torch.device) -> Group:
    """Meet the other ranks at `host`:`port`, where rank 0 listens. Returns when all are there.

    `dist.DistNetworkError` or `dist.DistStoreError` where they do not come, or where the port is taken.
    """
    if world_size == 1:
        return alone(device)
    if interface := _interface_to(host, port):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store = TCPStore(host, port, world_size, is_master=rank == 0, timeout=PATIENCE)
    return meet(store, rank, world_size, device)


def meet(store: Store, rank: int, world_size: int, device: torch.device) -> Group:
    """As `join`, through a store that is there already."""
    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=PATIENCE)
    mesh = init_device_mesh(device.type, (world_size,))
    host_mesh = mesh if device.type == "cpu" else init_device_mesh("cpu", (world_size,))
    side = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(side, dist.ProcessGroup), "every rank is in it"
    return Group(rank, world_size, device, mesh, host_mesh, side)


def leave(group: Group) -> None:
    if group.world_size > 1:
        dist.destroy_process_group()


def reduce_scatter(output: torch.Tensor, parts: torch.Tensor) -> None:
    """`output` [n]: the sum over ranks of the part that is this rank's in `parts` [world_size * n]."""
    # The op's name since torch 2.13, and before.
    op = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    op(output, parts)


def all_gather(output: torch.Tensor, part: torch.Tensor) -> None:
    """`output` [world_size * n]: every rank's `part` [n]."""
    op = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    op(output, part)


def _interface_to(host: str, port: int) -> str:
    """The network interface by which rank 0 is reached: left alone, gloo takes that of the machine's own name, which
    may resolve to nothing. "" where it cannot be told, so that gloo decides."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # sends nothing
            address = ipaddress.ip_address(probe.getsockname()[0])
    except OSError:
        return ""
    # Rank 0 reaches itself by the loopback, whatever its host is called; the others come from outside.
    for name, addresses in psutil.net_if_addrs().items():
        for known in addresses:
            if known.family == socket.AF_INET and ipaddress.ip_address(known.address) == address:
                return name
    return ""
