"""Tools that are sent to another node: what an artifact holds, who signed it, and which versions of a set run.

A manifest names every file with its size and digest, so the bytes that follow it are wholly determined by it. It
travels as the very text that was signed.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from .base import Message, Request
from .blob import Blob, Digest

Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,40}$")]
Version = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,39}$")]


class ArtifactFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: `path` below the artifact's root, with `/` between folders."""

    path: str
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
    digest: Digest
    executable: bool = False


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that is to be known of an artifact. Its digest, the SHA-256 of its JSON text, is the artifact's name.

    `entry` is `module:attribute`, or the path of a Python file whose tools are meant. `source` is the folder below the
    root that modules are imported from. `requirements` are lines as pip reads them; one that begins with `./` names a
    wheel among the files. `python`: versions it runs on, as in `requires-python`; empty: any.
    """

    format: int = 1
    name: Name
    version: Version
    entry: str
    source: str = ""
    requirements: tuple[str, ...] = ()
    python: str = ""
    files: tuple[ArtifactFile, ...]


class Artifact(msgspec.Struct, frozen=True):
    """A signed artifact on its way: `manifest` is the JSON text, `signer` a public key, `signature` theirs in hex.

    `content` are the files as a tar archive. Nothing in here is to be believed before the signature was checked.
    """

    manifest: str
    signer: str
    signature: str
    content: Blob


class DeployedVersion(msgspec.Struct, frozen=True):
    """One version of a set: the digest of its manifest, and who signed it."""

    version: str
    digest: str
    signer: str


class Deployment(Message, frozen=True, tag="tool.deployment"):
    """A set of tools as it is deployed. Calls of `<name>.<tool>` go to the version `current`.

    `address_of_version` is what a version's own tools stand under. `state` is `running`, or `waiting` for a node that
    fits; `node` is where it runs.
    """

    name: str
    current: str
    versions: tuple[DeployedVersion, ...]
    labels: tuple[str, ...] = ()
    state: str = "running"
    node: str = ""


class DeploymentList(Message, frozen=True, tag="tool.deployments"):
    deployments: tuple[Deployment, ...]


class DeployTools(Request[Deployment], frozen=True, tag="tool.deploy"):
    """Ask the actor `deployments` to run an artifact on a node that has all `labels` and allows the signer.

    It is answered when the tools run. What runs under that name goes on until then; with `beside` it stays and the new
    version is called by its own address only. Without, calls go to the new one from then on, and the others end when
    the calls they have are over. Errors: `tool.untrusted`, `tool.artifact`, `tool.environment`, `actor.no_node`.
    """

    artifact: Artifact
    labels: tuple[str, ...] = ()
    beside: bool = False


class SwitchTools(Request[Deployment], frozen=True, tag="tool.switch"):
    """Let calls go to another version that runs. Without `keep`, the others end when their calls are over."""

    name: str
    version: str
    keep: bool = False


class UndeployTools(Request[DeploymentList], frozen=True, tag="tool.undeploy"):
    """End a set, or one version that is not the current one. Answered with what is left of that name."""

    name: str
    version: str = ""


class ListDeployments(Request[DeploymentList], frozen=True, tag="tool.list_deployments"):
    """What is deployed."""


class Plan(Message, frozen=True, tag="tool.plan"):
    """Which artifacts a deployer is to run, and which of them is called by the set's own name."""

    artifacts: tuple[Artifact, ...]
    current: str


class GetPlan(Request[Plan], frozen=True, tag="tool.get_plan"):
    """A deployer that starts asks `deployments` what it is to run."""

    name: str


class FollowPlan(Request[Plan], frozen=True, tag="tool.follow_plan"):
    """Tell a deployer that its plan has changed; it asks `deployments` for it, and answers when it is carried out.

    New versions start first, then calls are switched, then old ones drain. Where one cannot start, all stays as it was.
    """
