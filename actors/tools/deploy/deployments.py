"""The actor `deployments`: which sets of tools run on other nodes, in which versions. It lives with the daemon.

It keeps the artifacts on its disk (shelf.py), so they are there for another node when the first one is gone, and after
a crash of the daemon. It is not what decides who may run what: each node does that by its own configuration.
"""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import msgspec

from ....runtime.actor import Actor, handler
from ....runtime.errors import ActorStopped, CallboardError, NameTaken, NoNodeFits, NoSuchActor, UsageError
from ....runtime.folders import Paths
from ....runtime.leases import signer_label
from ....runtime.log import log
from ....runtime.placement import OnNode
from ....runtime.supervision import Supervision
from ....schemas.tool import OfferTools
from ....schemas.tool_deploy import (
    Artifact,
    DeployedVersion,
    Deployment,
    DeploymentList,
    DeployTools,
    FollowPlan,
    GetPlan,
    ListDeployments,
    Manifest,
    Plan,
    SwitchTools,
    UndeployTools,
)
from ..directory import ADDRESS as DIRECTORY
from .archive import archive_size, check_archive, digest_of
from .deployer import DRAIN_S, DeployerConfig
from .environment import INSTALL_TIMEOUT_S
from .errors import ArtifactDamaged, NotDeployed
from .keys import unknown_signer
from .shelf import KeptSet, KeptVersion, Shelf
from .version import READY_TIMEOUT_S, check_artifact, token_of

if TYPE_CHECKING:
    from ....schemas.blob import Blob

START_TIMEOUT_S = INSTALL_TIMEOUT_S + READY_TIMEOUT_S
# How long the first start of a set waits for a node that fits; who deploys wants to know.
PATIENCE_S = 1.0
# A set that did not come back is tried again after this.
RETRY_S = 1.0
# How long a copy of an artifact is there for a node to read.
COPY_S = 600.0
_PIECE = 1 << 20


class DeploymentsConfig(msgspec.Struct, frozen=True):
    """`folder`: where it keeps artifacts; empty: `tools` in the daemon's folder."""

    folder: str = ""


class Deployments(Actor[DeploymentsConfig]):
    """Handlers run beside each other; what changes one set goes one after the other."""

    supervision = Supervision(max_restarts=1000, period_s=600.0, backoff_s=0.1, backoff_max_s=30.0)

    async def started(self) -> None:
        self._shelf = await anyio.to_thread.run_sync(Shelf, self._folder())
        self._sets = await anyio.to_thread.run_sync(self._shelf.sets)
        # What a deployer is told when it asks; before its set is kept, what it is to become.
        self._wanted: dict[str, KeptSet] = dict(self._sets)
        self._locks: dict[str, asyncio.Lock] = collections.defaultdict(asyncio.Lock)
        self._arriving: set[str] = set()
        self._copies: dict[str, tuple[Blob, float]] = {}
        for kept in self._sets.values():
            self.start_soon(self._bring_back, kept.name)

    def _folder(self) -> Path:
        if self.config.folder:
            return Path(self.config.folder)
        logs = self.node.logs
        return (logs.parent if logs is not None else Paths.find().state) / "tools"

    # Asking

    @handler(concurrent=True)
    async def deploy(self, message: DeployTools) -> Deployment:
        artifact = message.artifact
        # Its own signer is believed here: whether a node believes them too is for the node to say.
        manifest = check_artifact(artifact, (artifact.signer,), self.node.name)
        version = KeptVersion(
            manifest.version, digest_of(artifact.manifest.encode()), artifact.signer, artifact.signature
        )
        async with self._locks[manifest.name]:
            old = self._sets.get(manifest.name)
            new = _with_version(old, manifest.name, version, message)
            await self._shelve(manifest, artifact, version.digest)
            try:
                return await self._change(old, new)
            finally:
                self._arriving.discard(version.digest)

    async def _shelve(self, manifest: Manifest, artifact: Artifact, digest: str) -> None:
        size, stated = artifact.content.size, archive_size(manifest)
        if size != stated:
            raise ArtifactDamaged(f"the archive has {size} bytes, and its manifest says {stated}")
        self._arriving.add(digest)
        try:
            content = self.blobs.read(artifact.content)
            await self._shelf.put(digest, artifact.manifest.encode(), content, partial(check_archive, manifest))
        except BaseException:
            self._arriving.discard(digest)
            raise

    @handler(concurrent=True)
    async def switch(self, message: SwitchTools) -> Deployment:
        async with self._locks[message.name]:
            old = self._kept(message.name)
            if message.version not in {version.version for version in old.versions}:
                raise NotDeployed(
                    f"there is no version {message.version} of {message.name}",
                    hint="it has: " + ", ".join(version.version for version in old.versions),
                )
            new = msgspec.structs.replace(old, current=message.version)
            return await self._change(old, new if message.keep else _only(new, message.version))

    @handler(concurrent=True)
    async def undeploy(self, message: UndeployTools) -> DeploymentList:
        async with self._locks[message.name]:
            old = self._kept(message.name)
            versions = tuple(version for version in old.versions if version.version != message.version)
            if not message.version or (not versions and len(old.versions) == 1):
                await self._end(old)
                return DeploymentList(())
            if len(versions) == len(old.versions):
                raise NotDeployed(f"there is no version {message.version} of {message.name}")
            if message.version == old.current:
                raise UsageError(
                    f"{message.name} means its version {message.version}",
                    hint=f"switch it first: `callboard tool switch {message.name}@{versions[0].version}`",
                )
            return DeploymentList((await self._change(old, msgspec.structs.replace(old, versions=versions)),))

    @handler(concurrent=True)
    async def list_all(self, message: ListDeployments) -> DeploymentList:
        return DeploymentList(tuple(self._described(kept) for _, kept in sorted(self._sets.items())))

    @handler(concurrent=True)
    async def plan(self, message: GetPlan) -> Plan:
        """For a deployer that starts."""
        kept = self._wanted.get(message.name)
        if kept is None:
            raise NotDeployed(f"no tools '{message.name}' are deployed any more")
        return await self._plan(kept)

    # Changing

    async def _change(self, old: KeptSet | None, new: KeptSet) -> Deployment:
        """Bring a set from one state to another, and keep the new one if that went well."""
        self._wanted[new.name] = new
        try:
            if old is None:
                await self._place(new)
            else:
                await self._tell(new)
        except BaseException:
            if old is None:
                del self._wanted[new.name]
            else:
                self._wanted[new.name] = old
            await self._keep()
            raise
        self._sets[new.name] = new
        await self._keep()
        await self._announce(new.name)
        return self._described(new)

    async def _announce(self, name: str) -> None:
        """Have the directory of tools, if there is one, ask once more what the set offers."""
        try:
            await self.actor(DIRECTORY).ask(OfferTools(name))
        except CallboardError as error:
            log.debug("the directory of tools does not hear of %s: %s", name, error)

    async def _place(self, kept: KeptSet) -> None:
        where = OnNode(_labels(kept), patience=PATIENCE_S, ready_timeout=START_TIMEOUT_S)
        try:
            await self.spawn("tool.deployer", DeployerConfig(kept.name, self.address), name=kept.name, where=where)
        except NoNodeFits as error:
            raise self._untrusted(kept) or error from error

    def _untrusted(self, kept: KeptSet) -> CallboardError | None:
        """Where a node has what was asked for, and only does not know the signer."""
        signer = kept.versions[0].signer
        for hello in self.node.require_links().peers.known.values():
            info = hello.info
            if info.accepts and set(kept.labels) <= set(info.labels) and signer_label(signer) not in info.labels:
                return unknown_signer(info.node, signer)
        return None

    async def _tell(self, new: KeptSet) -> None:
        """Have the set's deployer ask for its plan."""
        try:
            await self.actor(new.name).ask(FollowPlan(), timeout=START_TIMEOUT_S)
        except NoSuchActor as error:
            raise NoNodeFits(
                f"{new.name} runs nowhere at present, so nothing can be changed about it",
                hint="`callboard tool deployments` shows what it waits for; `callboard tool undeploy` ends it",
            ) from error

    async def _end(self, kept: KeptSet) -> None:
        self._wanted.pop(kept.name, None)
        del self._sets[kept.name]
        await self._keep()
        if kept.name in self.node.actors:
            await self.node.stop(kept.name, DRAIN_S)

    async def _keep(self) -> None:
        in_use = {version.digest for kept in self._wanted.values() for version in kept.versions} | self._arriving
        await anyio.to_thread.run_sync(self._shelf.write_sets, dict(self._sets), in_use)

    async def _bring_back(self, name: str) -> None:
        """After a restart: when there is a node, however long that takes."""
        while (kept := self._wanted.get(name)) is not None and name not in self.node.actors:
            where = OnNode(_labels(kept), patience=math.inf, ready_timeout=START_TIMEOUT_S)
            try:
                await self.spawn("tool.deployer", DeployerConfig(name, self.address), name=name, where=where)
                return
            except (ActorStopped, NameTaken) as error:
                # Undeployed while it waited, or the node of its last life has not yet seen that its lease is over.
                log.info("%s is not brought back yet: %s", name, error)
            except CallboardError as error:
                log.error("%s is not brought back yet: %s", name, error)
            await anyio.sleep(RETRY_S)  # nothing says when a name is free

    # Describing

    def _kept(self, name: str) -> KeptSet:
        if name not in self._sets:
            raise NotDeployed(f"no tools '{name}' are deployed")
        return self._sets[name]

    def _described(self, kept: KeptSet) -> Deployment:
        child = self.node.actors.get(kept.name)
        running = child is not None and child.state == "running"
        node = child.keeps.partition("@")[2] if child is not None and running else ""
        versions = tuple(DeployedVersion(kept.version, kept.digest, kept.signer) for kept in kept.versions)
        return Deployment(kept.name, kept.current, versions, kept.labels, "running" if running else "waiting", node)

    async def _plan(self, kept: KeptSet) -> Plan:
        artifacts = [
            Artifact(
                await anyio.to_thread.run_sync(self._shelf.manifest, version.digest),
                version.signer,
                version.signature,
                await self._copy(version.digest),
            )
            for version in kept.versions
        ]
        return Plan(tuple(artifacts), kept.current)

    async def _copy(self, digest: str) -> Blob:
        """An artifact's content where other nodes can read it."""
        copy = self._copies.pop(digest, None)
        if copy is not None and copy[1] > time.monotonic():
            self._copies[digest] = copy
            return copy[0]
        if copy is not None:
            await self.blobs.release(copy[0])
        try:
            blob = await self.blobs.put(_file(self._shelf.content(digest)), ttl=2 * COPY_S)
        except OSError as error:
            raise ArtifactDamaged(f"the artifact {digest} cannot be read: {error}", hint="deploy it anew") from error
        self._copies[digest] = (blob, time.monotonic() + COPY_S)
        return blob

    async def stopped(self) -> None:
        for blob, _ in self._copies.values():
            await self.blobs.release(blob)


def _labels(kept: KeptSet) -> tuple[str, ...]:
    return (*kept.labels, signer_label(kept.versions[0].signer))


def _only(kept: KeptSet, version: str) -> KeptSet:
    return msgspec.structs.replace(kept, versions=tuple(one for one in kept.versions if one.version == version))


def _with_version(old: KeptSet | None, name: str, version: KeptVersion, message: DeployTools) -> KeptSet:
    """The set with another version. Raises UsageError where that cannot stand beside what is there."""
    if old is None:
        return KeptSet(name, version.version, (version,), message.labels)
    if message.labels and message.labels != old.labels:
        raise UsageError(
            f"{name} is deployed on {', '.join(old.labels) or 'any node'}",
            hint=f"`callboard tool undeploy {name}` first, or deploy it under another --name",
        )
    if old.versions[0].signer != version.signer:
        raise UsageError(
            f"{name} was deployed by another signer, {old.versions[0].signer}",
            hint=f"`callboard tool undeploy {name}` first, or deploy it under another --name",
        )
    for other in old.versions:
        if other.version == version.version and other.digest != version.digest:
            raise UsageError(
                f"{name} {version.version} is deployed already, with other contents",
                hint="raise its version, or give one by --version",
            )
        if other.version != version.version and token_of(other.version) == token_of(version.version):
            raise UsageError(f"{name} {other.version} has the same address as {version.version} would have")
    others = tuple(other for other in old.versions if other.version != version.version)
    kept = msgspec.structs.replace(old, versions=(*others, version))
    return kept if message.beside else _only(msgspec.structs.replace(kept, current=version.version), version.version)


async def _file(path: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(_PIECE):
            yield piece
