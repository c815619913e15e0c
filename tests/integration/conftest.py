"""What these tests share: their helper modules are importable as they are; a server of a test's own; a small disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from callboard.runtime.bus import BusOptions
from callboard.runtime.node import Node

sys.path.insert(0, str(Path(__file__).parent))

from own_server import OwnServer, own_server
from unit_helpers import unit_helper


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with 8 MiB of room, a file system of its own. Skips where this person may not mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no `mount`")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    """One that this test may kill and start again, with JetStream."""
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        yield server


@pytest.fixture
async def node(server: OwnServer) -> AsyncIterator[Node]:
    """A node on it."""
    async with Node(bus=BusOptions(server.url)) as node:
        yield node


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model of the tests of models."""
    return _write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with room for 2,048 tokens."""
    return _write_tiny_model(tmp_path_factory.mktemp("long") / "tiny.gguf", context_length=2048)


def _write_tiny_model(path: Path, **options: Any) -> Path:
    return unit_helper("models/conftest.py").write_tiny_model(path, **options)
