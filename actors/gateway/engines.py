"""Which models the company serves, and who to ask for each."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from ...runtime.census import actors_around
from ...runtime.errors import ActorStopped, CallboardError, DeadlineExceeded, NoSuchActor, NotUnderstood
from ...runtime.log import log
from ...runtime.node import Node
from ...runtime.refs import Ref
from ...schemas.serve import DescribeModel, ModelDescription
from .errors import ModelUnknown, StillLoading
from .metered import MeteredRef
from .meters import ModelMeter

SCHEDULER, ENGINE = "serve.scheduler", "serve.engine"
# What was found is looked up again after so long while there are requests, else as seldom as that; and at once where a
# name is not known, or the bus says that a node came, went or has other actors.
KNOWN_FOR_S = 5.0
IDLE_FOR_S = 60.0
# Nodes that come together are looked at together.
SETTLE_S = 0.25
# A scheduler that lives says what it serves at once.
DESCRIBE_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Engine:
    """`adapter`: the LoRA adapter that the name stands for, "" for the model itself."""

    scheduler: Ref
    model: ModelDescription
    adapter: str = ""


@dataclass(frozen=True)
class Loading:
    """An engine that does not serve yet. `since`: seconds since 1970; `state`: as its supervisor sees it."""

    engine: str
    since: float
    state: str


@dataclass(frozen=True)
class Found:
    """What there was when it was looked for. `loading`: engines that do not serve yet."""

    engines: Mapping[str, Engine]
    loading: tuple[Loading, ...]
    at: float


class Engines:
    """Finds engines on the bus. `aliases`: further names, each with a scheduler's address.

    `follow` keeps what is known up to date beside the requests, so that none waits for it whose model is known.
    """

    def __init__(self, node: Node, aliases: Mapping[str, str]) -> None:
        self._node = node
        self._aliases = aliases
        self._found: Found | None = None
        self._asked_at = 0.0
        self._looking = asyncio.Lock()
        self.meters: dict[tuple[str, str], ModelMeter] = {}
        """What was asked through this gateway, by the model's name and the scheduler's address."""
        # Has an engine load what is called so; whether there is such a thing.
        self.load: Callable[[str], Awaitable[bool]] | None = None

    async def find(self, name: str) -> Engine:
        """The engine that serves `name`; for "" the only one that there is.

        Raises ModelUnknown with the names that there are, StillLoading where an engine is about to serve.
        """
        self._asked_at = time.monotonic()
        found = self._found or await self.look()
        engine = self._pick(found, name)
        if engine is None:
            found = await self.look(since=time.monotonic())
            engine = self._pick(found, name)
        if engine is None and name and self.load is not None and await self.load(name):
            found = await self.look(since=time.monotonic())
            engine = self._pick(found, name)
        if engine is not None:
            return engine
        if not found.engines and found.loading:
            raise StillLoading(f"{', '.join(one.engine for one in found.loading)} is loading its model")
        known = ", ".join(sorted(found.engines)) or "none: no engine runs"
        if not name:
            raise ModelUnknown(f"the request names no model; there are: {known}", param="model")
        raise ModelUnknown(f"there is no model '{name}'; there are: {known}", param="model")

    async def look(self, since: float | None = None) -> Found:
        """What there is: as of `since` or later (monotonic clock), by default as of a few seconds ago."""
        wanted = time.monotonic() - KNOWN_FOR_S if since is None else since
        if self._found is not None and self._found.at >= wanted:
            return self._found
        async with self._looking:
            if self._found is None or self._found.at < wanted:
                self._found = await self._look()
            return self._found

    async def follow(self) -> None:
        """Look at once, and again for ever when it is time to."""
        around: object = None
        while True:
            now, before, around = time.monotonic(), around, self._around()
            found_at = -math.inf if self._found is None else self._found.at
            known_for_s = KNOWN_FOR_S if self._asked_at > found_at else IDLE_FOR_S
            try:
                if around != before:
                    await asyncio.sleep(SETTLE_S)
                    await self.look(since=time.monotonic())
                elif now - found_at >= known_for_s:
                    await self.look(since=now)
            except CallboardError as error:  # of the bus, which is away: requests hear of it by themselves
                log.debug("engines cannot be looked up: %s", error)
            await self._news(KNOWN_FOR_S)

    def _around(self) -> object:
        """Of each node that was heard of, which process it is and what is on it; and the same of our own."""
        links = self._node.links
        infos = [] if links is None else [hello.info for hello in links.peers.known.values()]
        return {(info.node, info.pid, info.roots) for info in (*infos, self._node.info())}

    async def _news(self, timeout: float) -> None:
        links = self._node.links
        if links is None:
            await asyncio.sleep(timeout)
        else:
            await links.peers.news(timeout)

    async def _look(self) -> Found:
        at = time.monotonic()
        actors = await actors_around(self._node)
        schedulers = sorted({info.address for info in actors if info.kind == SCHEDULER} | set(self._aliases.values()))
        described = await asyncio.gather(*map(self._describe, schedulers))
        engines: dict[str, Engine] = {}
        by_address = {address: model for address, model in zip(schedulers, described, strict=True) if model is not None}
        for address, model in by_address.items():
            ref = self._metered(address, model)
            engines.setdefault(model.model, Engine(ref, model))
            for adapter in model.adapters:
                engines.setdefault(adapter, Engine(ref, model, adapter))
        for alias, address in self._aliases.items():
            if address in by_address:
                engines[alias] = Engine(self._metered(address, by_address[address]), by_address[address])
        served = {address.rpartition(".")[0] for address in by_address}
        loading = tuple(
            Loading(info.address, info.since, info.state)
            for info in actors
            if info.kind == ENGINE and info.address not in served
        )
        return Found(engines, loading, at)

    def _metered(self, address: str, model: ModelDescription) -> MeteredRef:
        meter = self.meters.setdefault((model.model, address), ModelMeter())
        return MeteredRef(address, self._node, meter)

    async def _describe(self, address: str) -> ModelDescription | None:
        try:
            return await self._node.actor(address).ask(DescribeModel(), timeout=DESCRIBE_TIMEOUT_S)
        except (NoSuchActor, ActorStopped, DeadlineExceeded, NotUnderstood) as error:
            log.debug("%s does not say what it serves: %s", address, error)
        except CallboardError as error:
            log.warning("%s does not say what it serves: %s", address, error)
        return None

    @staticmethod
    def _pick(found: Found, name: str) -> Engine | None:
        if name:
            return found.engines.get(name)
        own = [engine for engine in found.engines.values() if not engine.adapter]
        return own[0] if len({engine.scheduler.address for engine in own}) == 1 else None
