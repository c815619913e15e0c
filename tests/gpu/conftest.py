"""Tests of the Triton path: on a card with `make gpu-test`, elsewhere under Triton's interpreter.

Under the interpreter inputs are small, float32 or float16, and each kernel has one configuration.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

if "callboard" not in sys.modules and importlib.machinery.PathFinder.find_spec("callboard") is None:
    # The package is this folder's grandparent, under whatever name it lies.
    package = types.ModuleType("callboard")
    package.__path__ = [str(ROOT)]
    sys.modules["callboard"] = package

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(params=["float32", "float16", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each type that a kernel takes; bfloat16 on a card only."""
    if request.param == "bfloat16" and INTERPRETED:
        pytest.skip("the interpreter's bfloat16 products are wrong")
    return getattr(torch, request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Fresh inputs in every run; a failure shows which."""
    print("torch.manual_seed", torch.seed())
