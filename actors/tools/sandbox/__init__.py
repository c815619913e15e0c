"""Running code that a model wrote, locked in: no network, no files but what it is given, limits on all that it uses.

async with Sandbox(SandboxConfig(limits=Limits(wall_s=10))) as box:
    result = await box.run_python("print(6 * 7)")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Limits as Limits
    from .config import SandboxConfig as SandboxConfig
    from .errors import SandboxError as SandboxError
    from .errors import SandboxKilled as SandboxKilled
    from .errors import SandboxLacks as SandboxLacks
    from .errors import SnapshotRefused as SnapshotRefused
    from .kernel import probe as probe
    from .parts import Kernel as Kernel
    from .parts import Part as Part
    from .results import GuestError as GuestError
    from .results import OutFile as OutFile
    from .results import RunResult as RunResult
    from .results import Usage as Usage
    from .sandbox import Sandbox as Sandbox
    from .snapshot import SessionSnapshot as SessionSnapshot

# Loaded when they are first asked for: the process that forks sandboxes imports this package too, and must stay small.
_PLACES = {
    "GuestError": "results",
    "Kernel": "parts",
    "Limits": "config",
    "OutFile": "results",
    "Part": "parts",
    "RunResult": "results",
    "Sandbox": "sandbox",
    "SandboxConfig": "config",
    "SandboxError": "errors",
    "SandboxKilled": "errors",
    "SandboxLacks": "errors",
    "SessionSnapshot": "snapshot",
    "SnapshotRefused": "errors",
    "Usage": "results",
    "probe": "kernel",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
