"""A deployed set of tools on the node that runs it: its root, `files` say, whose tools are called at `files.read`.

It is placed by `deployments` and asks that actor which versions it is to run. It believes nothing that it is told but
what is signed by somebody whom this very node's configuration allows.
"""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import msgspec

from ....runtime.actor import Actor, handler
from ....runtime.errors import CallboardError, NoSuchActor
from ....runtime.log import log
from ....runtime.supervision import Supervision
from ....schemas.tool import ListTools, OpenTool, ToolInfo, ToolList
from ....schemas.tool_deploy import FollowPlan, GetPlan, Name, Plan
from ..relevance import chosen, newest
from .errors import ArtifactDamaged, DeployError
from .relay import RelayConfig, Relaying, Route, ToolRelay
from .version import DeployedTools, Offered, VersionConfig, check_artifact, short_name, token_of

DEPLOYMENTS = "deployments"
# How long the calls of a version that was switched away have to end.
DRAIN_S = 600.0
# How long one that is to run again meanwhile is waited for.
ENDING_S = 30.0


class DeployerConfig(msgspec.Struct, frozen=True):
    """`name` is the set's. `source` is the actor that knows the plan."""

    name: Name
    source: str = DEPLOYMENTS


class Deployer(Relaying[DeployerConfig], Actor[DeployerConfig]):
    """Has a child for each version, and one for each tool of the current version."""

    supervision = Supervision(max_restarts=1000, period_s=600.0, backoff_s=0.1, backoff_max_s=30.0)

    async def started(self) -> None:
        self._lock = asyncio.Lock()
        self._running: dict[str, VersionConfig] = {}
        self._ending: dict[str, anyio.Event] = {}
        self._current = ""
        self._routes: dict[str, Route] = {}
        self._infos: tuple[ToolInfo, ...] = ()
        await self._follow()

    @handler(concurrent=True)
    async def follow_plan(self, message: FollowPlan) -> Plan:
        async with self._lock:
            return await self._follow()

    @handler
    async def list_tools(self, message: ListTools) -> ToolList:
        """The current version's tools; those of the others where they are asked for as `name@version`."""
        return chosen(self._all(any("@" in name for name in message.names)), message)

    @handler
    async def open_tool(self, message: OpenTool) -> ToolInfo:
        """`kit.read@1.0` is the tool of that version, `kit.read` that of the current one."""
        return newest(self._all("@" in message.name), message.name)

    def _all(self, every_version: bool) -> list[ToolInfo]:
        others = [one.offered.infos for version, one in self._running.items() if version != self._current]
        return [*self._infos, *(info for infos in others if every_version for info in infos)]

    async def _follow(self) -> Plan:
        plan = await self.actor(self.config.source).ask(GetPlan(self.config.name))
        wanted = self._checked(plan)
        new: list[str] = []
        try:
            for version, config in wanted.items():
                if version not in self._running:
                    await self._has_ended(version)
                    new.append(version)
                    await self.spawn(DeployedTools, config, name=token_of(version))
            await self._switch(wanted[plan.current].offered.targets)
        except BaseException:
            with anyio.CancelScope(shield=True):
                for version in new:
                    await self._stop(version, 0.0)
            raise
        old = [version for version in self._running if version not in wanted]
        self._running, self._current = wanted, plan.current
        for version in old:
            self._ending[version] = anyio.Event()
            self.start_soon(self._retire, version)
        return plan

    async def _retire(self, version: str) -> None:
        try:
            await self._stop(version, DRAIN_S)
        finally:
            self._ending.pop(version).set()

    async def _has_ended(self, version: str) -> None:
        """Wait for the last calls of a version that was switched away and comes back. Raises DeployError."""
        ending = self._ending.get(version)
        if ending is None:
            return
        with anyio.move_on_after(ENDING_S):
            return await ending.wait()
        raise DeployError(
            f"{self.config.name} {version} is still ending the calls that it had when it was switched away",
            hint="try again in a moment, or deploy it under another version",
        )

    def _checked(self, plan: Plan) -> dict[str, VersionConfig]:
        """The plan's artifacts by version, if this node may run every one of them."""
        signers = self.node.offer.signers if self.node.offer is not None else ()
        wanted: dict[str, VersionConfig] = {}
        for artifact in plan.artifacts:
            manifest = check_artifact(artifact, signers, self.node.name)
            if manifest.name != self.config.name:
                raise ArtifactDamaged(f"these are the tools '{manifest.name}', and '{self.config.name}' was asked for")
            running = self._running.get(manifest.version)
            if running is not None and running.artifact.manifest != artifact.manifest:
                raise ArtifactDamaged(
                    f"another {manifest.name} {manifest.version} runs here", hint="deploy it under another version"
                )
            wanted[manifest.version] = running or VersionConfig(artifact, Offered())
        if plan.current not in wanted:
            raise ArtifactDamaged(f"there is no version '{plan.current}' of {self.config.name} to switch to")
        return wanted

    async def _switch(self, tools: tuple[ToolInfo, ...]) -> None:
        """Let calls of the set's own tools go to these from now on."""
        targets = {short_name(target, self.config.name): target for target in tools}
        added = {short: Route(target) for short, target in targets.items() if short not in self._routes}
        begun: list[str] = []
        try:
            for short, route in added.items():
                if short:
                    await self.spawn(ToolRelay, RelayConfig(route), name=short)
                    begun.append(short)
        except BaseException:
            with anyio.CancelScope(shield=True):
                for short in begun:
                    await self._stop_relay(short)
            raise
        gone = [short for short in self._routes if short not in targets]
        self._routes = {short: route for short, route in {**self._routes, **added}.items() if short in targets}
        for short, route in self._routes.items():
            route.target = targets[short]
        self.route = self._routes.get("")
        self._infos = tuple(
            msgspec.structs.replace(target, address=f"{self.address}.{short}" if short else self.address)
            for short, target in targets.items()
        )
        for short in gone:
            self.start_soon(self._stop_relay, short)

    async def _stop_relay(self, short: str) -> None:
        if not short:
            return
        with contextlib.suppress(NoSuchActor):
            await self.node.stop(f"{self.address}.{short}", DRAIN_S)

    async def _stop(self, version: str, timeout: float) -> None:
        try:
            with contextlib.suppress(NoSuchActor):  # it did not come that far
                await self.node.stop(self._address(version), timeout)
        except CallboardError as error:
            log.error("%s %s did not end well: %s", self.config.name, version, error)

    def _address(self, version: str) -> str:
        return f"{self.address}.{token_of(version)}"
