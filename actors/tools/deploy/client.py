"""Deploying from a program: sign what was gathered, put it on the bus, and ask the actor `deployments`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ....runtime.client import Client
from ....runtime.errors import NameTaken
from ....runtime.refs import Ref
from ....schemas.tool_deploy import Artifact, Deployment, DeployTools
from .archive import encode_manifest, pack
from .deployer import DEPLOYMENTS
from .deployments import START_TIMEOUT_S
from .gather import Gathered
from .keys import Signer

KIND = "deployments"


async def deployments(bus: Client) -> Ref:
    """The company's `deployments`, started with the daemon's node if it is not there yet."""
    try:
        return await bus.spawn(KIND, name=DEPLOYMENTS)
    except NameTaken:
        return bus.actor(DEPLOYMENTS)


async def deploy(
    bus: Client, gathered: Gathered, signer: Signer, *, labels: tuple[str, ...] = (), beside: bool = False
) -> Deployment:
    """Have an artifact run on a node that has `labels` and allows the signer; see `DeployTools` for what it raises."""
    text = encode_manifest(gathered.manifest)

    async def archive() -> AsyncIterator[bytes]:
        for piece in pack(gathered.manifest, gathered.contents):
            yield piece

    blob = await bus.blobs.put(archive())
    try:
        artifact = Artifact(text.decode(), signer.public, signer.sign(text), blob)
        there = await deployments(bus)
        return await there.ask(DeployTools(artifact, labels, beside), timeout=START_TIMEOUT_S)
    finally:
        await bus.blobs.release(blob)
