"""A node's own actor, `node.<name>`: spawns, stops and lists for whoever asks over the bus."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator

import anyio.to_thread
import msgspec

from ..schemas.blob import BlobShared, ShareBlob
from ..schemas.company import CompanyReloaded, CompanyState, GetCompany, ReloadCompany
from ..schemas.inspecting import (
    ActorDescription,
    DescribeActor,
    FollowLogs,
    KindInfo,
    KindList,
    ListKinds,
    LogEntries,
)
from ..schemas.metrics import GetMetrics, NodeMetrics
from ..schemas.runtime import (
    ActorList,
    Draining,
    DrainNode,
    ListActors,
    ListNodes,
    NodeList,
    RestartActor,
    Restarted,
    Spawn,
    Spawned,
    StopActor,
    Stopped,
)
from ..schemas.trace import GetTrace, KeepSpans, ListTraces, TraceList, TraceSpans
from .actor import Actor, NoConfig, handler
from .errors import CallboardError, HandlerFailed, NoSuchActor, UsageError
from .log import log
from .placement import where_of
from .supervision import Restart


class NodeControl(Actor[NoConfig]):
    """Present on every node that is on the bus."""

    @handler(concurrent=True)
    async def spawn_actor(self, message: Spawn) -> Spawned:
        by = self._sender()
        if message.lease:
            self.node.leases.grant(message)
            if message.takeover:
                self.node.takes_over.add(message.name)
        restart = Restart(message.restart)
        try:
            ref = await self.node.spawn(
                message.kind,
                message.config,
                name=message.name,
                where=where_of(message),
                restart=restart,
                supervised=Restart(message.supervised),
            )
        except CallboardError as error:
            self._audit("spawn", message.name or message.kind, by, outcome=error.code)
            raise
        except Exception as error:  # of somebody's `started`, or of their module: not a crash of this actor
            log.error("%s could not be started", message.name or message.kind, exc_info=error)
            raise HandlerFailed(
                f"{message.name or message.kind} could not be started: {type(error).__name__}: {error}",
                detail="".join(traceback.format_exception(error)),
            ) from error
        finally:
            if message.name not in self.node.actors:
                self.node.leases.drop(message.name)
            self.node.takes_over.discard(message.name)
        self._audit("spawn", ref.address, by, detail=f"kind {message.kind}")
        if self.node.roster is not None and restart is Restart.PERMANENT:
            self.node.roster.add(msgspec.structs.replace(message, name=ref.address))
        return Spawned(ref.address)

    @handler(concurrent=True)
    async def stop_actor(self, message: StopActor) -> Stopped:
        address = message.address
        _check_is_no_node(address)
        by = self._sender()
        # Forgotten first: one that waits to be brought back is not there to be stopped, and must not come any more.
        was_known = self.node.roster is not None and self.node.roster.remove(address)
        try:
            await self.node.stop(address, message.timeout)
        except NoSuchActor:
            if not was_known:
                raise
        self._audit("stop", address, by)
        return Stopped(address)

    @handler(concurrent=True)
    async def restart_actor(self, message: RestartActor) -> Restarted:
        """Raises what its start raised; its supervisor then goes on as after a crash."""
        address = message.address
        _check_is_no_node(address)
        by = self._sender()
        try:
            restarts = await self.node.restart(address, message.timeout)
        except CallboardError as error:
            self._audit("restart", address, by, outcome=error.code)
            raise
        except Exception as error:  # of somebody's `started`: its supervisor has it in hand
            raise HandlerFailed(
                f"{address} could not be started again: {type(error).__name__}: {error}",
                detail="".join(traceback.format_exception(error)),
            ) from error
        self._audit("restart", address, by)
        return Restarted(address, restarts)

    def _sender(self) -> str:
        """Who asks, as it says of itself; which machine and process that is, the hellos of the nodes tell."""
        sender = self._cell.sender() or "a program without a name"
        links = self.node.links
        hello = links.peers.known.get(sender) if links is not None else None
        return sender if hello is None else f"{sender} (pid {hello.info.pid} on {hello.info.host})"

    def _audit(self, action: str, what: str, by: str, *, detail: str = "", outcome: str = "done") -> None:
        if self.node.audit is not None:
            self.node.audit.record(action, what, by=by, proven=False, detail=detail, outcome=outcome)

    @handler
    async def list_actors(self, message: ListActors) -> ActorList:
        prefix = message.prefix
        found = [
            address
            for address in self.node.actors
            if not prefix or address == prefix or address.startswith(f"{prefix}.")
        ]
        page = sorted(address for address in found if address > message.after)[: message.limit]
        return ActorList(tuple(self.node.actors[address].info() for address in page), len(found), self.node.name)

    @handler
    async def describe_actor(self, message: DescribeActor) -> ActorDescription:
        from .inspecting import describe

        child = self.node.actors.get(message.address)
        if child is None:
            raise NoSuchActor(f"there is no actor {message.address} on node {self.node.name}")
        return describe(self.node, child)

    @handler(concurrent=True)
    async def list_kinds(self, message: ListKinds) -> KindList:
        from .kinds import known_kinds

        kinds = await anyio.to_thread.run_sync(known_kinds)
        return KindList(tuple(KindInfo(name, entry.package) for name, entry in kinds.items()))

    @handler(concurrent=True)
    async def follow_logs(self, message: FollowLogs) -> AsyncIterator[LogEntries]:
        from .inspecting import follow

        if self.node.logs is None:
            raise UsageError(
                f"node {self.node.name} keeps no logs: what it says goes to where it was started",
                hint="ask `node.main` for those of the daemon and of the processes that it started",
            )
        async for entries in follow(self.node.logs, message):
            yield entries

    @handler
    async def list_nodes(self, message: ListNodes) -> NodeList:
        """The nodes this one has heard of, itself first."""
        links = self.node.require_links()
        others = sorted((hello.info for hello in links.peers.known.values()), key=lambda info: info.node)
        return NodeList((self.node.info(), *others))

    @handler
    async def drain_node(self, message: DrainNode) -> Draining:
        """Raises UsageError on a node that ends with who started it: the daemon, an actor's process, a program."""
        name, drain = self.node.name, self.node.on_drain
        if drain is None:
            raise UsageError(
                f"{name} is no node that joined by itself",
                hint="stop the actor whose process it is, or end the program; `callboard down` stops the daemon",
            )
        self._audit("drain", f"node {name}", self._sender())
        drain()
        return Draining(name, self.node.info().roots)

    @handler(concurrent=True)
    async def get_company(self, message: GetCompany) -> CompanyState:
        if self.node.company is None:
            return CompanyState("")
        return await self.node.company.state(settled=message.settled)

    @handler(concurrent=True)
    async def reload_company(self, message: ReloadCompany) -> CompanyReloaded:
        company = self.node.company
        if company is None:
            raise UsageError(
                f"node {self.node.name} has no company file", hint="`callboard up -c FILE` starts a daemon with one"
            )
        return await (company.would_change() if message.dry_run else company.reload())

    @handler(concurrent=True)
    async def share_blob(self, message: ShareBlob) -> BlobShared:
        return BlobShared(message.id, await self.node.blobs.share(message.id))

    # What this node has counted, and what it knows of traced requests

    @handler
    async def metrics(self, message: GetMetrics) -> NodeMetrics:
        from .metrics import measure

        return measure(self.node)

    @handler
    async def get_trace(self, message: GetTrace) -> TraceSpans:
        return TraceSpans(*self.node.tracer.spans(message.trace))

    @handler
    async def list_traces(self, message: ListTraces) -> TraceList:
        return TraceList(self.node.tracer.summaries(message.limit))

    @handler
    async def keep_spans(self, message: KeepSpans) -> None:
        self.node.tracer.keep(message.spans)


def _check_is_no_node(address: str) -> None:
    if address.startswith("node."):
        raise UsageError(
            f"{address} is a node's own actor, which ends with its process",
            hint="`callboard down` stops the daemon and all it started",
        )
