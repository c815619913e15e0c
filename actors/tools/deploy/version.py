"""One version of a deployed set on the node that runs it: its files, its environment, its process, its relays."""

from __future__ import annotations

import hashlib
import re
from functools import partial
from pathlib import Path

import anyio
import msgspec
from anyio.to_thread import run_sync

from ....runtime.actor import Actor, handler
from ....runtime.folders import Paths
from ....runtime.log import log
from ....runtime.placement import Process
from ....runtime.supervision import Supervision
from ....schemas.tool import ListTools, ToolInfo, ToolList
from ....schemas.tool_deploy import Artifact, Manifest
from ..relevance import chosen
from ..tool_set import ToolSetConfig
from .archive import archive_size, decode_manifest, digest_of, is_intact, remove, unpack
from .environment import Environment, environment_for, variables
from .errors import ArtifactDamaged
from .keys import check_signature
from .made_once import Kept, keep, prune
from .relay import RelayConfig, Relaying, Route, ToolRelay

# What its tools import may be large.
READY_TIMEOUT_S = 300.0
# To fetch an artifact from another host and unpack it.
UNPACK_TIMEOUT_S = 300.0


class Offered(msgspec.Struct):
    """Filled in by a version that is ready: its tools in their own process, and as it relays to them."""

    targets: tuple[ToolInfo, ...] = ()
    infos: tuple[ToolInfo, ...] = ()


class VersionConfig(msgspec.Struct, frozen=True):
    artifact: Artifact
    offered: Offered


class DeployedTools(Relaying[VersionConfig], Actor[VersionConfig]):
    """Ready when its process is. A tool `read` of it is then called at `<address>.read`, a single tool at `<address>`.

    The process has the role `tool`, and is started again as often as it ends.
    """

    supervision = Supervision(max_restarts=1000, period_s=600.0, backoff_s=0.1, backoff_max_s=30.0)

    async def started(self) -> None:
        self._kept: list[Kept] = []
        artifact = self.config.artifact
        manifest = check_artifact(artifact, self.node.offer.signers if self.node.offer else (), self.node.name)
        digest = digest_of(artifact.manifest.encode())
        base = Paths.find().cache / "deployed-tools"
        content = base / "content" / digest
        self._kept.append(await self._unpacked(manifest, content))
        environment = await environment_for(manifest, content, base / "envs")
        self._kept.append(environment.kept)
        targets = await self._start(manifest, digest, content, environment)
        infos: list[ToolInfo] = []
        for target in targets:
            name = short_name(target, manifest.name)
            if name:
                await self.spawn(ToolRelay, RelayConfig(Route(target)), name=name)
            else:
                self.route = Route(target)
            address = f"{self.address}.{name}" if name else self.address
            infos.append(msgspec.structs.replace(target, address=address))
        self.start_soon(self._prune, base)
        self.config.offered.targets, self.config.offered.infos = targets, tuple(infos)

    async def stopped(self) -> None:
        for kept in self._kept:
            kept.release()

    async def _unpacked(self, manifest: Manifest, folder: Path) -> Kept:
        """Have its files in that folder: what is there already is used if it is what was signed, to the last byte."""
        content, stated = self.config.artifact.content, archive_size(manifest)

        async def make() -> None:
            if content.size != stated:
                raise ArtifactDamaged(f"the archive has {content.size} bytes, and its manifest says {stated}")
            await run_sync(remove, folder)
            async with self.blobs.open(content) as archive:
                await run_sync(unpack, manifest, archive, folder)

        try:
            with anyio.fail_after(UNPACK_TIMEOUT_S):
                return await keep(folder, partial(is_intact, manifest, folder), make)
        except TimeoutError:
            raise ArtifactDamaged(
                f"the files of {manifest.name} {manifest.version} in {folder} were changed, and are in use",
                hint="stop what runs there, or remove that folder",
            ) from None

    async def _prune(self, base: Path) -> None:
        """Let go of what no set has used for long."""
        for part in ("content", "envs"):
            try:
                for folder in await run_sync(prune, base / part, remove):
                    log.info("%s was not used for long and is removed", folder)
            except OSError as error:
                log.warning("what is not used any more below %s cannot be removed: %s", base, error)

    async def _start(
        self, manifest: Manifest, digest: str, content: Path, environment: Environment
    ) -> tuple[ToolInfo, ...]:
        """The tools as their own process describes them."""
        is_module = ":" in manifest.entry
        script = content / manifest.entry
        load = manifest.entry if is_module else script.stem
        worker = await self.spawn(
            "deployed.tools",
            ToolSetConfig(load, name=manifest.name, version=manifest.version, alone=True),
            name=self._process_name(manifest, digest),
            where=Process(
                env=variables(environment.folder, content / manifest.source if is_module else None),
                load=() if is_module else (str(script),),
                allow=(manifest.entry.partition(":")[0],) if is_module else (),
                role="tool",
                python=str(environment.python),
                ready_timeout=READY_TIMEOUT_S,
            ),
        )
        return (await worker.ask(ListTools())).tools

    def _process_name(self, manifest: Manifest, digest: str) -> str:
        """Unique on the bus, for a set that moves starts before its last process is quite gone; and the same at each
        start on this node, for the user that was minted for it lasts."""
        node = hashlib.sha256(self.node.name.encode()).hexdigest()
        return f"{manifest.name}-{digest[:8]}-{node[:6]}"

    @handler
    async def list_tools(self, message: ListTools) -> ToolList:
        return chosen(self.config.offered.infos, message)


def check_artifact(artifact: Artifact, signers: tuple[str, ...], node: str) -> Manifest:
    """The manifest of an artifact that this node may run. Nothing of it is read before its signature was checked.

    Raises ToolUntrusted, ArtifactDamaged.
    """
    text = artifact.manifest.encode("utf-8", "surrogatepass")
    check_signature(text, artifact.signer, artifact.signature, signers, node)
    return decode_manifest(text)


def token_of(version: str) -> str:
    """The version as a part of an address: `v1-2-0`."""
    return "v" + re.sub(r"[^A-Za-z0-9_-]", "-", version)


def short_name(info: ToolInfo, set_name: str) -> str:
    """The tool's name without that of its set; empty for a set that is one tool."""
    return info.name.removeprefix(set_name).removeprefix(".")
