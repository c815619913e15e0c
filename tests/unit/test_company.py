"""A company on a node of its own: how each actor stands, and what a reload makes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from callboard import Node
from callboard.runtime.company import Company
from callboard.runtime.daemon_orders import DaemonReport, Saying
from callboard.runtime.errors import ConfigError
from callboard.runtime.folders import Paths
from callboard.runtime.supervision import Restart
from callboard.schemas.bench import Add

pytestmark = pytest.mark.anyio

COUNTER = '[[actor]]\nname = "{}"\nkind = "counter"\n'


class Stage:
    def __init__(self, node: Node, company: Company, reports: list[DaemonReport]) -> None:
        self.node, self.company, self.reports = node, company, reports

    def write(self, *names: str, more: str = "") -> None:
        self.company.file.write_text("".join(map(COUNTER.format, names)) + more)

    async def standing(self) -> dict[str, str]:
        return {actor.name: actor.standing.value for actor in (await self.company.state(settled=True)).actors}

    async def reload(self) -> dict[str, str]:
        return {step.name: step.action.value for step in (await self.company.reload()).steps}


@asynccontextmanager
async def stage(folder: Path, *names: str, more: str = "") -> AsyncIterator[Stage]:
    file = folder / "company.toml"
    file.write_text("".join(map(COUNTER.format, names)) + more)
    reports: list[DaemonReport] = []
    paths = Paths(folder, folder, folder, folder)
    async with Node("main") as node, anyio.create_task_group() as tasks:
        company = Company(node, file, paths, reports.append, tasks)
        await tasks.start(company.begin)
        yield Stage(node, company, reports)
        tasks.cancel_scope.cancel()


async def test_what_was_stopped_is_missing_until_the_next_reload(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", "b") as here:
        assert await here.standing() == {"a": "running", "b": "running"}
        await here.node.stop("a")
        assert await here.standing() == {"a": "missing", "b": "running"}
        assert await here.reload() == {"a": "start", "b": "keep"}
        assert await here.standing() == {"a": "running", "b": "running"}


async def test_what_may_end_and_has_is_left_at_that(tmp_path: Path) -> None:
    async with stage(tmp_path, "a", more='restart = "transient"\n') as here:
        assert await here.standing() == {"a": "running"}
        await here.node.stop("a")
        assert await here.standing() == {"a": "ended"}
        assert await here.reload() == {"a": "keep"}
        here.write("a")
        assert await here.standing() == {"a": "missing"}
        assert await here.reload() == {"a": "start"}


async def test_a_name_that_the_file_lists_is_the_files(tmp_path: Path) -> None:
    async with stage(tmp_path, "a") as here:
        await here.node.spawn("counter", name="b")
        await here.node.actor("b").ask(Add(5))
        assert await here.standing() == {"a": "running", "b": "extra"}
        here.write("a", "b")
        assert await here.standing() == {"a": "running", "b": "differs"}
        assert await here.reload() == {"a": "keep", "b": "restart"}
        assert (await here.node.actor("b").ask(Add(1))).value == 1
        await here.node.stop("a")
        await here.node.spawn("counter", name="a", restart=Restart.TEMPORARY)  # somebody else's, of the same name
        assert await here.standing() == {"a": "differs", "b": "running"}
        here.write("b")
        assert await here.reload() == {"b": "keep"}
        assert await here.standing() == {"b": "running", "a": "extra"}


async def test_the_service_manager_hears_of_a_reload_also_of_one_that_fails(tmp_path: Path) -> None:
    async with stage(tmp_path, "a") as here:
        await here.standing()
        here.write("a", more="[[actor]\n")
        with pytest.raises(ConfigError, match="not valid TOML"):
            await here.reload()
        assert await here.standing() == {"a": "running"}
        said = [(report.what, report.text) for report in here.reports]
        assert said[0] == (Saying.STATUS, "1 of 1 actors of company.toml run")
        assert [what for what, _ in said[1:]] == [Saying.RELOADING, Saying.RELOADED]
        assert here.reports[1].monotonic_usec > 0


async def test_a_reload_goes_on_when_whoever_asked_for_it_goes_away(
    tmp_path: Path, eventually: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    async with stage(tmp_path, "a") as here:
        await here.standing()
        here.write("a", "b")
        with anyio.move_on_after(0):
            await here.reload()
        await eventually(lambda: "b" in here.node.actors)
        assert await here.standing() == {"a": "running", "b": "running"}
