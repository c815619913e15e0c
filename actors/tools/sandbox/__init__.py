"""Running code that a model wrote, locked in: no network, no files but what it is given, limits on all that it uses.

async with Sandbox(SandboxConfig(limits=Limits(wall_s=10))) as box:
    result = await box.run_python("print(6 * 7)")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import Limits, SandboxConfig
    from .errors import SandboxError, SandboxKilled, SandboxLacks, SnapshotRefused
    from .parts import Kernel, Part
    from .probe import probe
    from .results import GuestError, OutFile, RunResult, Usage
    from .sandbox import Sandbox
    from .snapshot import SessionSnapshot

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
    "probe": "probe",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_PLACES[name]}", __name__), name)
