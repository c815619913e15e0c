"""The folder that the registry's cache is in, found without importing what the settings need."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    if given := os.environ.get("CALLBOARD_CACHE_DIR"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("callboard", appauthor=False)
