"""Compiles the native kernels into the folder that all tests share: a test that had to would use up its own time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from callboard.kernels import native

os.environ["CALLBOARD_CACHE_DIR"] = str(Path.home() / ".cache" / "callboard-test")

try:
    with ThreadPoolExecutor() as pool:
        list(pool.map(native.load, [source.name for source in native.SOURCES.glob("*.cpp")]))
except native.NativeUnavailable as error:
    print(f"tests of the native kernels will be skipped: {error}")
