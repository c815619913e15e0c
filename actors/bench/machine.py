"""What a figure was measured on: figures of two machines are not compared."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

from ...schemas.serve_stats import EngineStats


def machine_facts(*packages: str) -> dict[str, Any]:
    """The machine, the Python and the versions of callboard and of `packages` (None where one is not installed)."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("callboard", *packages)},
    }


def kernels_of(stats: EngineStats) -> str:
    """What computes in an engine's replicas."""
    return ", ".join(sorted({replica.kernels for replica in stats.replicas}))


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
