"""Errors of deploying tools.

DeployError                 tool.deploy
├── ToolUntrusted           tool.untrusted      signed by nobody whom the node allows, or not by whom it says
├── ArtifactDamaged         tool.artifact       it is not what its manifest says, or holds what none may hold
├── EnvironmentFailed       tool.environment    its requirements could not be installed
└── NotDeployed             tool.not_deployed   no set, or no version of it, of that name
"""

from __future__ import annotations

from ....runtime.errors import CallboardError


class DeployError(CallboardError):
    code = "tool.deploy"


class ToolUntrusted(DeployError):
    code = "tool.untrusted"


class ArtifactDamaged(DeployError):
    code = "tool.artifact"
    default_hint = "make the artifact anew: `callboard tool deploy`"


class EnvironmentFailed(DeployError):
    code = "tool.environment"


class NotDeployed(DeployError):
    code = "tool.not_deployed"
    default_hint = "`callboard tool deployments` lists what is there"
