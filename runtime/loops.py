"""The event loop that our own processes run: uvloop where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any


def backend_options() -> dict[str, Any]:
    """For `anyio.run(..., backend_options=...)`."""
    return {"use_uvloop": importlib.util.find_spec("uvloop") is not None}
