"""An actor on a Ray cluster, seen from the process that supervises it.

A process here is Ray's driver for it (ray_driver.py) and stands for it: it takes the orders and gives the reports of an
actor's own process, so that all else is as with one. It is a process because Ray ends a driver whose cluster is gone.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import msgspec

from .errors import ActorStopped, MissingExtra, NameTaken, NoNodeFits, NotReachable
from .frames import RayOrders, Start
from .log import log
from .placement import RAY_CONNECT_TIMEOUT_S, ChildSpec, Process, Ray
from .process import ProcessChild

if TYPE_CHECKING:
    pass

# How often a restart is tried again that only has to wait.
RETRY_S = 1.0

_WAITS_FOR = (NotReachable, NoNodeFits, NameTaken)


class RayChild(ProcessChild):
    """Has a Ray cluster start the actor's process, and reports its end to the family like any child's."""

    __slots__ = ("_place",)

    _module = "callboard.runtime.ray_driver"

    def __init__(self, spec: ChildSpec, place: Ray) -> None:
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra.of("cluster", "an actor on a Ray cluster")
        process = Process(load=place.load, ready_timeout=place.start_timeout)
        super().__init__(spec, process)
        self._place = place

    async def start(self) -> None:
        """A restart waits for a cluster, for room there, and for its name, which its last bearer may still have."""
        told = ""
        while True:
            try:
                return await super().start()
            except _WAITS_FOR as error:
                if not self.restarts:
                    raise
                if told != str(error):
                    log.warning("%s waits to be restarted: %s", self.address, error, extra={"actor": self.address})
                    told = str(error)
            await self._node.require_links().peers.news(RETRY_S)
            if self.closed:
                raise ActorStopped(f"{self.address} was stopped while it started")

    async def _orders(self) -> RayOrders:
        start = await super()._orders()
        assert isinstance(start, Start)
        place = self._place
        return RayOrders(
            # The key that signs users stays here; the daemon signs those of the actor's own processes.
            start=msgspec.structs.replace(start, account="", takeover=start.takeover or self.restarts > 0),
            address=place.address,
            num_cpus=place.num_cpus,
            num_gpus=place.num_gpus,
            memory=place.memory,
            resources=place.resources,
            env=place.env,
            connect_timeout=RAY_CONNECT_TIMEOUT_S,
            patience=place.patience,
            ready_timeout=place.ready_timeout,
        )
