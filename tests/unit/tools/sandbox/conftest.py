"""What the sandbox's tests share: one sandbox for many tests, in an event loop of its own, and a world around it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

sys.path.insert(0, str(Path(__file__).parent))

from sandbox_rig import LIMITS, MakeRig, Rig
from sandbox_world import World

from callboard.actors.tools.sandbox import Kernel, Limits, Sandbox, SandboxConfig, probe


@contextmanager
def _on_disk() -> Iterator[Path]:
    """The folders of other tests may lie below /dev, of which a sandbox gives nothing to code."""
    with tempfile.TemporaryDirectory(prefix="tests-of-sandbox-") as folder:
        (own := Path(folder).resolve() / "own").mkdir()
        yield own


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    with _on_disk() as folder:
        yield folder


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with _on_disk() as folder:
        world = World(folder)
        yield world
        world.close()


@pytest.fixture(scope="module")
def make_rig() -> Iterator[MakeRig]:
    """Sandboxes of a module; they end with it."""
    with start_blocking_portal() as portal:
        made: list[Sandbox] = []

        def make(limits: Limits = LIMITS, kernel: Kernel | None = None, **config: object) -> Rig:
            given = SandboxConfig(limits=limits, **config)  # type: ignore[arg-type]
            box = Sandbox(given, kernel=kernel)
            portal.call(box.open)
            made.append(box)
            return Rig(portal, box)

        yield make
        for box in made:
            portal.call(box.close)


@pytest.fixture(scope="module")
def rig(make_rig: MakeRig, world: World) -> Rig:
    return make_rig(read=(str(world.data),))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = probe().lacking
    for item in items:
        if Path(__file__).parent in item.path.parents and lacking and "without" not in item.name:
            item.add_marker(pytest.mark.skip(reason=f"this kernel lacks {', '.join(lacking)}"))
