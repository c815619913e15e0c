"""How the pages of agents and approvals look, with what differs from one time to the next taken out."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from tui_support import Daemon, Eventually, OpenApp, Picture
from work_company import at_work, begin

from callboard.tui.screens import approvals
from callboard.tui.widgets import approval_detail
from callboard.tui.widgets.live_table import LiveTable
from callboard.tui.widgets.run_tree import RunTree

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

TIMES = [
    (r"asked  \d+ .*denied *", "0"),
    (r"\d\d:\d\d:\d\d", "0"),
    (r"\d+\.\d\d s", "0"),
    (r"\b0-[0-9a-f]{2,10}\b", "r"),
    (r"\d+ s\b", "0"),
    (r"desk-[0-9a-f]{6}", "d"),
]


@pytest.fixture(scope="module", autouse=True)
def company(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    notes = tmp_path_factory.mktemp("notes")
    (notes / "plan.txt").write_text("first: milk\nthen: tea\n")
    with at_work(daemon, notes):
        yield


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_of_agents_looks_as_it_did(
    open_app: OpenApp, eventually: Eventually, picture: Picture, size: tuple[int, int]
) -> None:
    async with open_app("agents", size=size) as it:
        table = it.page.query_one(LiveTable)
        await eventually(lambda: len(table.rows_shown) == 2)
        table.filter = "Compare"
        await eventually(lambda: "■ finished" in it.screen_text())
        it.page.query_one(RunTree).focus()
        await it.pilot.press("home")
        await it.pilot.pause()
        await picture(it.app, "agents", TIMES)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_of_approvals_looks_as_it_did(
    daemon: Daemon,
    open_app: OpenApp,
    eventually: Eventually,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
) -> None:
    async with open_app("approvals", size=size) as it:
        async with daemon.connect() as bus:
            await begin(bus, "write my shopping list")
        await eventually(lambda: "on node desk" in it.screen_text())
        await eventually(lambda: bool(it.app._notifications))
        it.app.clear_notifications()
        asked_at = it.page.chosen.asked_at
        for module in (approvals, approval_detail):  # how long ago it was, and how much time is left, in words
            monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: asked_at + 5))
        it.page._changed()
        await eventually(lambda: "5 s ago" in it.screen_text())
        await it.pilot.pause()
        try:
            await picture(it.app, "approvals", TIMES)
        finally:  # the next picture is of one that waits, too
            await it.pilot.press("x")
            await eventually(lambda: it.page.chosen is None)
