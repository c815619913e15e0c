"""What this kernel has of the parts that the sandbox stands on, found out by trying each in a process of its own.

Asking by version or by a setting would be wrong wherever a container, a security module or a distribution's patch
forbids what the kernel could do.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys

from .parts import WHAT_FOR, Kernel, Part

_PROBE_S = 20


@functools.cache
def probe() -> Kernel:
    """Blocks for some 50 ms the first time; the same for the life of this process."""
    if sys.platform != "linux":
        return Kernel(frozenset(), 0, ((Part.LINUX, platform.system()),))
    command = [sys.executable, "-I", "-m", f"{__package__}.probing"]
    done = subprocess.run(command, capture_output=True, timeout=_PROBE_S, env={"PATH": os.defpath}, check=False)
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        return Kernel(frozenset({Part.LINUX}), 0, tuple((part, text[-300:]) for part in WHAT_FOR if part != Part.LINUX))
    found = json.loads(done.stdout)
    why = {Part(name): text for name, text in found["why"].items()}
    parts = frozenset(part for part in Part if part not in why)
    return Kernel(parts, found["landlock_abi"], tuple(sorted(why.items())))
