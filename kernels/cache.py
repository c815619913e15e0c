"""Where what is made once for a machine lies: compiled kernels, and which of their variants are fastest.

Nothing but Linux computes with either, so this is the XDG rule by itself, which platformdirs follows there too: the
kernels run where nothing but torch is installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """The folder `name` in CALLBOARD_CACHE_DIR, else in the user's cache folder. Does not make it."""
    if chosen := environment.get("CALLBOARD_CACHE_DIR"):
        return Path(chosen).expanduser() / name
    usual = environment.get("XDG_CACHE_HOME", "").strip() or "~/.cache"
    return Path(usual).expanduser() / "callboard" / name
