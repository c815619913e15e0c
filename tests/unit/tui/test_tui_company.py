"""The page of the company on a real daemon: what is seen, found, described, followed, and done if confirmed."""

from __future__ import annotations

from typing import Any, cast

import anyio
import pytest
from tui_support import COMMAND, Daemon, Eventually, OpenApp, Picture, Running

from callboard.actors.bench.counter import Counter
from callboard.runtime.client import connect
from callboard.runtime.errors import UsageError
from callboard.schemas.bench import Add
from callboard.schemas.inspecting import ActorDescription
from callboard.schemas.metrics import Durations, NodeMetrics
from callboard.schemas.runtime import ActorInfo, DrainNode, NodeInfo
from callboard.tui.census import Seen
from callboard.tui.screens import company as page
from callboard.tui.widgets import actor_view
from callboard.tui.widgets.actor_view import ActorView
from callboard.tui.widgets.live_table import LiveTable
from callboard.tui.widgets.log_view import LogView
from callboard.tui.widgets.supervision_tree import SupervisionTree

pytestmark = pytest.mark.anyio


def actors(it: Running) -> LiveTable:
    return it.page.query_one("#actors", LiveTable)


def value(it: Running, address: str, title: str) -> object:
    """A cell of the table of actors."""
    table = actors(it)
    column = next(number for number, column in enumerate(table.columns_shown) if column.title == title)
    return table.rows_shown[address][column]


async def on(it: Running, eventually: Eventually, address: str) -> None:
    """Put the cursor on an actor once it is there."""
    await eventually(lambda: address in actors(it).rows_shown)
    actors(it).select(address)
    await eventually(lambda: it.page.selected == address)


async def test_every_node_and_actor_is_there_with_its_figures(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(120, 40)) as it:
        near = await bus.spawn("counter", name="near")
        far = await bus.spawn("counter", name="far", process=True)
        await eventually(lambda: {"near", "far", "node.main", "node.far"} <= set(actors(it).rows_shown))
        # An actor with a process of its own is listed before that process has said where it runs.
        await eventually(lambda: value(it, "far", "node") == "far")
        assert value(it, "near", "node") == "main"
        assert value(it, "far", "pid") != value(it, "near", "pid")
        await eventually(lambda: isinstance(value(it, "far", "mem"), int))
        assert 5_000_000 < cast("int", value(it, "far", "mem")) < 2_000_000_000
        for _ in range(5):
            await far.ask(Add(1))
        await near.ask(Add(1))
        await eventually(lambda: value(it, "far", "done") == 5)
        nodes = it.page.query_one("#nodes", LiveTable)
        await eventually(lambda: {"main", "far"} <= set(nodes.rows_shown))
        # The app itself is no part of what it shows.
        assert it.app.session is not None
        assert it.app.session.client.node.name not in nodes.rows_shown
        async with anyio.create_task_group() as group:

            async def keep_busy() -> None:
                while True:
                    await far.ask(Add(1))

            group.start_soon(keep_busy)
            await eventually(lambda: (value(it, "far", "msg/s") or 0) > 5)  # type: ignore[operator]
            group.cancel_scope.cancel()
        await bus.stop("far")
        await eventually(lambda: "far" not in actors(it).rows_shown)
        await bus.stop("near")


async def test_a_filter_leaves_those_that_fit_and_a_click_away_they_are_back(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(80, 24)) as it:
        for name in ("alpha", "beta"):
            await bus.spawn("counter", name=name)
        await eventually(lambda: {"alpha", "beta"} <= set(actors(it).rows_shown))
        await it.pilot.press("slash", *"alph", "enter")
        await eventually(lambda: "alpha" in it.screen_text() and "beta" not in it.screen_text())
        await it.pilot.press("escape")
        await eventually(lambda: "beta" in it.screen_text())
        for name in ("alpha", "beta"):
            await bus.stop(name)


async def test_an_actor_is_described_as_its_own_process_has_it(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(120, 40)) as it:
        counter = await bus.spawn("counter", name="looked-at", process=True)
        await counter.ask(Add(1))
        await on(it, eventually, "looked-at")
        await it.pilot.press("enter")
        for part in ("bench.add", "permanent", "handled"):
            await eventually(lambda part=part: part in it.screen_text())
        assert it.page.query_one(ActorView).display
        await it.pilot.press("c")
        await eventually(lambda: "bench.add" in it.app.clipboard and "kind        counter" in it.app.clipboard)
        await it.pilot.press("escape", "c")
        assert it.app.clipboard.split("\t")[:3] == ["looked-at", "counter", "running"]
        await eventually(lambda: "bench.add" not in it.screen_text())
        await bus.stop("looked-at")


async def test_logs_of_an_actor_come_as_they_are_written(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(120, 40)) as it:
        await bus.spawn("counter", name="talker")
        await on(it, eventually, "talker")
        await it.pilot.press("l")
        logs = it.page.query_one(LogView)
        await bus.restart("talker")  # the daemon says so, in its actor's name
        await eventually(lambda: any("restarting talker" in entry.message for entry in logs.entries))
        await eventually(lambda: "restarting talker" in it.screen_text())
        await it.pilot.press("c")
        assert "restarting talker" in it.app.clipboard
        # A page that is hidden follows nothing.
        await it.app.show_page("bus")
        await eventually(lambda: not it.app.get_screen_stack("company")[0].is_open)  # type: ignore[attr-defined]
        before = len(logs.entries)
        await bus.restart("talker")
        await it.app.show_page("company")
        await eventually(lambda: sum("restarting talker" in entry.message for entry in logs.entries) == 2)
        assert before >= 1
        await bus.stop("talker")


async def test_nothing_is_stopped_or_restarted_unless_it_is_confirmed(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(80, 24)) as it:
        await bus.spawn("counter", name="victim", process=True)
        await on(it, eventually, "victim")
        for key, question in (("x", "Stop victim?"), ("r", "Restart victim?")):
            await it.pilot.press(key)
            await eventually(lambda question=question: question in it.screen_text())
            await it.pilot.press("enter")  # No is in focus
            await eventually(lambda question=question: question not in it.screen_text())
        (info,) = await bus.actors("victim")
        assert (info.state, info.restarts) == ("running", 0)
        await it.pilot.press("r")
        await eventually(lambda: "Restart victim?" in it.screen_text())
        await it.pilot.press("y")
        await eventually(lambda: value(it, "victim", "restarts") == 1)
        (again,) = await bus.actors("victim")
        assert (again.restarts, again.pid != info.pid) == (1, True)
        await it.pilot.press("x")
        await eventually(lambda: "Stop victim?" in it.screen_text())
        await it.pilot.press("y")
        await eventually(lambda: "victim" not in actors(it).rows_shown)
        assert not await bus.actors("victim")


async def choose_node(it: Running, eventually: Eventually, name: str) -> None:
    """Put the cursor on a node, with the table of nodes in focus."""
    nodes = it.page.query_one("#nodes", LiveTable)
    await eventually(lambda: name in nodes.rows_shown)
    nodes.focus()
    nodes.select(name)
    await eventually(lambda: it.page.selected_node is not None and it.page.selected_node.node == name)


async def test_an_actors_process_is_restarted_and_ended_after_it_was_said_what_ends_with_it(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(120, 40)) as it:
        await bus.spawn("tool.set", '{"load": "data"}', name="kit", process=True)
        below = [info.address for info in await bus.actors("kit") if info.address != "kit"]
        await eventually(lambda: set(below) <= set(actors(it).rows_shown) and value(it, "kit", "node") == "kit")
        await choose_node(it, eventually, "kit")
        before = cast("int", value(it, "kit", "pid"))
        await it.pilot.press("r")
        await eventually(lambda: "Restart the process of kit?" in it.screen_text() and below[0] in it.screen_text())
        await it.pilot.press("enter")  # No is in focus
        await eventually(lambda: "Restart the process of kit?" not in it.screen_text())
        assert value(it, "kit", "restarts") == 0
        await it.pilot.press("r")
        await eventually(lambda: "Restart the process of kit?" in it.screen_text())
        await it.pilot.press("y")
        await eventually(lambda: value(it, "kit", "restarts") == 1 and value(it, "kit", "pid") != before)
        await choose_node(it, eventually, "kit")
        await it.pilot.press("x")
        await eventually(lambda: "End the process of kit?" in it.screen_text() and below[0] in it.screen_text())
        await it.pilot.press("y")
        await eventually(lambda: "kit" not in actors(it).rows_shown)
        assert not await bus.actors("kit")


async def test_a_node_that_joined_gets_an_actor_and_is_drained_and_its_actor_waits_for_another(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    command = [*COMMAND, "node", "--name", "guest", "--labels", "spare"]
    guest = await anyio.open_process(command, env=daemon.environment, stdin=None, stdout=None, stderr=None)
    try:
        async with daemon.connect() as bus, open_app("company", size=(120, 40)) as it:
            await choose_node(it, eventually, "guest")
            await it.pilot.press("n")  # on the node under the cursor
            await eventually(lambda: "Spawn an actor" in it.screen_text())
            await it.pilot.press(*"counter", "enter", *"lodger", "ctrl+s")
            await eventually(lambda: "lodger" in actors(it).rows_shown and value(it, "lodger", "node") == "guest")
            await choose_node(it, eventually, "guest")
            await it.pilot.press("r")
            await eventually(lambda: "cannot be restarted from here" in it.screen_text())
            await it.pilot.press("x")
            await eventually(lambda: "Drain guest?" in it.screen_text() and "lodger move" in it.screen_text())
            await it.pilot.press("y")
            with anyio.fail_after(30):
                assert await guest.wait() == 0
            await eventually(lambda: "guest" not in it.page.query_one("#nodes", LiveTable).rows_shown)
            await bus.stop("lodger")
    finally:
        if guest.returncode is None:
            guest.kill()
            await guest.wait()


async def test_the_daemon_and_other_programs_are_not_ended_from_here_and_who_may_is_said(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    solo = connect(state_dir=str(daemon.state), name="solo")
    async with solo as bus, open_app("company", size=(160, 40)) as it:
        await bus.host(Counter, name="solo")  # an actor's name is no proof that the process is an actor's
        for name, hint in (("main", "`callboard down` ends it"), ("solo", "where it was started")):
            await choose_node(it, eventually, name)
            await it.pilot.press("x")
            await eventually(lambda hint=hint: any(hint in note.message for note in it.app._notifications))
            with pytest.raises(UsageError, match="no node that joined"):
                await bus.actor(f"node.{name}").ask(DrainNode())


async def test_an_actor_is_spawned_where_it_was_wanted_and_a_mistake_is_said(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(80, 24)) as it:
        await eventually(lambda: bool(actors(it).rows_shown))
        await it.pilot.press("n")
        await eventually(lambda: "Spawn an actor" in it.screen_text())
        await it.pilot.press(*"counter", "enter", *"made", "ctrl+s")
        await eventually(lambda: "made" in actors(it).rows_shown and value(it, "made", "node") == "main")
        await it.pilot.press("n")
        await eventually(lambda: "Spawn an actor" in it.screen_text())
        await it.pilot.press(*"countre", "ctrl+s")
        await eventually(lambda: "no actor kind named 'countre'" in it.screen_text())
        await it.pilot.press("n")
        await eventually(lambda: "Kind" in it.screen_text())
        await it.pilot.press("escape")
        await eventually(lambda: "Kind" not in it.screen_text())
        await bus.stop("made")


async def test_the_tree_shows_who_supervises_whom_and_keys_act_on_its_cursor(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with daemon.connect() as bus, open_app("company", size=(80, 24)) as it:
        await bus.spawn("tool.set", '{"load": "data"}', name="sums")
        await eventually(lambda: any(name.startswith("sums.") for name in actors(it).rows_shown))
        await it.pilot.press("t")
        tree = it.page.query_one(SupervisionTree)

        def children() -> list[Any]:
            """Of the actor, in the tree."""
            return [child for node in tree.root.children if node.data == "sums" for child in node.children]

        def listed() -> list[str]:
            return [name for name in actors(it).rows_shown if name.startswith("sums.")]

        await eventually(lambda: bool(listed()) and [child.data for child in children()] == listed())
        below = listed()[0]
        tree.move_cursor(children()[0])
        await eventually(lambda: it.page.selected == below)
        await it.pilot.press("c")
        assert it.app.clipboard == below
        await it.pilot.press("x")
        await eventually(lambda: f"Stop {below}?" in it.screen_text())
        await it.pilot.press("escape")
        await bus.stop("sums")
        await eventually(lambda: "sums" not in it.screen_text())
        await it.pilot.press("t")


async def test_a_daemon_that_goes_away_is_said_and_back_it_is_seen_again(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually
) -> None:
    async with open_app("company", size=(80, 24)) as it:
        await eventually(lambda: "node.main" in actors(it).rows_shown)
        daemon.down()
        await eventually(lambda: "not connected" in it.screen_text())
        daemon.up()
        await eventually(lambda: "● connected" in it.screen_text())
        async with daemon.connect() as bus:
            await bus.spawn("counter", name="after")
            await eventually(lambda: "after" in actors(it).rows_shown)
            await bus.stop("after")


@pytest.mark.parametrize("size", [(20, 5), (40, 12)])
async def test_small_terminals_show_what_they_can(
    open_app: OpenApp, eventually: Eventually, size: tuple[int, int]
) -> None:
    async with open_app("company", size=size) as it:
        await eventually(lambda: bool(actors(it).rows_shown))
        for key in ("d", "l", "escape", "t", "t", "n", "escape"):
            await it.pilot.press(key)
        assert it.screen_text()


def actor(address: str, kind: str, node: str, processed: int, **more: Any) -> ActorInfo:
    return ActorInfo(address, kind, "running", node, 4000 + len(node), processed=processed, since=1000.0, **more)


def seen(at: float) -> Seen:
    """A company as it might be, at that second."""
    n = int(at) * 128
    return Seen(
        at,
        (NodeInfo("main", 4004, "board", "0.1.0", ("runs",)), NodeInfo("engine", 4006, "board", "0.1.0", ("engine",)),
         NodeInfo("far-1", 77, "rack-2", "0.1.0", accepts=True, labels=("gpu",), memory=64 << 30, cpus=16)),
        (actor("engine", "serve.engine", "engine", n // 4),
         actor("engine.replica", "serve.replica", "engine", n, supervisor="engine"),
         actor("engine.scheduler", "serve.scheduler", "engine", n * 3, mailbox=12, errors=1, supervisor="engine"),
         actor("node.main", "node", "main", n // 16), actor("runs", "agent.runs", "main", 7, restarts=2),
         actor("\x1b[31mred", "odd", "far-1", 0, supervisor="runs")),
        {"main": NodeMetrics("main", 4004, "0.1.0", 3723.0, at / 8, 41_000_000),
         "engine": NodeMetrics("engine", 4006, "0.1.0", 3700.0, at * 1.5, 812_000_000)},
    )  # fmt: skip


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_looks_as_it_did(
    open_app: OpenApp, eventually: Eventually, picture: Picture, monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
) -> None:  # fmt: skip
    """With a company as it might be, for no two have the same figures."""
    moments = iter((1.0, 2.0))

    async def look(client: object) -> Seen:
        return seen(next(moments))

    monkeypatch.setattr(page, "look", look)
    monkeypatch.setattr(page, "LOOK_EVERY_S", 1000.0)
    monkeypatch.setattr(page.time, "time", lambda: 4720.0)
    monkeypatch.setattr(actor_view.time, "time", lambda: 4720.0)
    async with open_app("company", size=size) as it:
        await on(it, eventually, "engine.scheduler")
        await it.page._look()
        row = it.page._rows["engine.scheduler"]
        it.page.query_one(ActorView).show(
            row,
            ActorDescription(
                info=row.info, restart="permanent", supervisor="engine", strategy="one_for_one", max_restarts=5,
                period_s=30, handles=("serve.generate", "serve.get_stats"), doc="Serves many at once.",
                mailbox_size=4096, mailbox_high=40, last_error="the prompt has 9,000 tokens",
                durations=Durations((0, 0, 3, 20, 2), 0.0007),
            ),
            None,
        )  # fmt: skip
        it.page.add_class("-actor")
        await it.pilot.pause()
        await picture(it.app, "company")
        if size == (80, 24):
            await it.pilot.press("escape", "t")
            await it.pilot.pause()
            await picture(it.app, "company-tree")
