"""Kind `deployed.tools`: a set of tools as its own process hosts it, behind the relays of a deployed set.

It is a kind of its own because the directory lists sets by their kind, and whoever calls a deployed tool is to go
through its relay: the process alone can neither fetch nor hand out what is on another host.
"""

from __future__ import annotations

from ....runtime.actor import Actor
from ..tool_set import ToolSet, ToolSetConfig


class DeployedProcess(ToolSet, Actor[ToolSetConfig]):
    pass
