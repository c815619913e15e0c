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

# Triton 3.9 warns on a card where this is not said, and a warning is an error here.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

if not INTERPRETED and not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if INTERPRETED else "cuda")


# The interpreter's bfloat16 products are wrong.
DTYPES = ["float32", "float16"] if INTERPRETED else ["float32", "float16", "bfloat16"]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Each type that a kernel takes; bfloat16 on a card only."""
    return getattr(torch, request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Fresh inputs in every run; a failure shows which."""
    print("torch.manual_seed", torch.seed())
