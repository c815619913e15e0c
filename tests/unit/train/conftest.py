"""What these tests share: the processes that are a group's ranks."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # helper modules beside the tests

from rank_processes import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    pair = Ranks(tmp_path_factory.mktemp("ranks"))
    yield pair
    pair.close()
