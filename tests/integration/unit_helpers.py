"""Helper modules of the unit tests. Their folders stay out of the path, where names of two folders would meet."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

UNIT = Path(__file__).parents[1] / "unit"


@cache
def unit_helper(path: str) -> ModuleType:
    """`unit_helper("agent/endpoint.py")`: the module at this place below tests/unit."""
    spec = importlib.util.spec_from_file_location(f"unit_{Path(path).parent.name}_{Path(path).stem}", UNIT / path)
    assert spec is not None
    assert spec.loader is not None
    # Its dataclasses look in `sys.modules` for what their annotations name.
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
