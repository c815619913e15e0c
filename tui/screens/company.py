"""The company: every node, process and actor, how they do, and what can be done with them."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import ContentSwitcher, DataTable, Tree
from textual.worker import Worker

from ...runtime.client import MAIN
from ...runtime.errors import CallboardError, NoSuchActor
from ...schemas.inspecting import DescribeActor, FollowLogs
from ..census import ActorRow, NodeRow, Pace, Seen, look, short_rate, short_size, short_time
from ..session import Session, as_line
from ..styles import beside
from ..widgets.actor_view import ActorView
from ..widgets.dialog import Confirm
from ..widgets.live_table import Column, LiveTable
from ..widgets.log_view import LogView
from ..widgets.supervision_tree import SupervisionTree
from .base import Page
from .spawning import ask_what_to_spawn, spawn

if TYPE_CHECKING:
    from collections.abc import Coroutine

LOOK_EVERY_S = 1.0
# Beyond so many actors a look costs the nodes more than somebody gains who reads them each second.
MANY = 2000
LOOK_AT_MANY_EVERY_S = 5.0
FIRST_LINES = 200
STOP_TIMEOUT_S = 10.0
# A node that answered none of so many looks is stuck.
SILENT_LOOKS = 20

ACTORS = (
    Column("actor"),
    Column("kind"),
    Column("state"),
    Column("wait", right=True, width=4),
    Column("msg/s", right=True, show=short_rate, width=5),
    Column("mem", right=True, show=short_size, width=5),
    Column("restarts", right=True),
    Column("node"),
    Column("pid", right=True, width=7),
    Column("done", right=True, show=lambda n: f"{n:,}", width=9),
    Column("errors", right=True, show=lambda n: f"{n:,}", width=6),
    Column("age", right=True, show=short_time, width=6),
)
NODES = (
    Column("node"),
    Column("host", width=12),
    Column("pid", right=True, width=7),
    Column("actors", right=True),
    Column("msg/s", right=True, show=short_rate, width=5),
    Column("cpu", right=True, show=lambda share: f"{100 * share:.0f}%", width=4),
    Column("mem", right=True, show=short_size, width=5),
    Column("up", right=True, show=short_time, width=6),
    Column("offers"),
)


class CompanyPage(Page):
    """The actors are what keys act on: the one under the cursor of the table, or of the tree."""

    NAME = "company"
    TITLE = "Company"
    KEY = "f3"
    DEFAULT_CSS = beside(__file__)
    AUTO_FOCUS = "#actors"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "describe", "Describe"),
        Binding("l", "logs", "Logs"),
        Binding("t", "tree", "Tree"),
        Binding("n", "spawn", "Spawn"),
        Binding("r", "restart", "Restart"),
        Binding("x", "stop", "Stop"),
        Binding("L", "all_logs", "All logs", show=False),
        Binding("escape", "close_panel", "Close", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()
        self._rows: dict[str, ActorRow] = {}
        self._looked_at = 0.0
        self._silent: dict[str, int] = {}
        self._described = ""
        self._following: Worker[None] | None = None
        self._followed: FollowLogs | None = None

    def body(self) -> ComposeResult:
        with Vertical(id="seen"):
            yield LiveTable(NODES, title="Nodes", sort=0, id="nodes")
            with ContentSwitcher(initial="actors", id="which"):
                yield LiveTable(ACTORS, title="Actors", sort=0, id="actors")
                yield SupervisionTree(id="tree")
        with Container(id="panel"):
            yield ActorView(id="actor")
            yield LogView(id="logs")

    async def opened(self, session: Session) -> None:
        self._pace = Pace()
        self._looked_at = 0.0
        self.every(LOOK_EVERY_S, self._look)
        if self._followed is not None and self.has_class("-logs"):
            self._follow(self._followed)

    async def closed(self) -> None:
        self._following = None

    async def _look(self) -> None:
        now = time.monotonic()
        if len(self._rows) > MANY and now - self._looked_at < LOOK_AT_MANY_EVERY_S:
            return
        self._looked_at = now
        seen = await look(self.session.client)
        if not self.query("#actors"):
            return  # the app is ending, and took its widgets away
        nodes, actors = self._pace.take(seen)
        self._rows = {row.info.address: row for row in actors}
        self._show(seen, nodes, actors)
        if self._described:
            await self._describe(self._described)

    def _show(self, seen: Seen, nodes: list[NodeRow], actors: list[ActorRow]) -> None:
        now = time.time()
        self.query_one("#actors", LiveTable).show({row.info.address: _actor(row, now) for row in actors})
        self.query_one("#nodes", LiveTable).show({row.info.node: _node(row) for row in nodes})
        if self.query_one("#which", ContentSwitcher).current == "tree":
            self.query_one(SupervisionTree).show(actors)
        # One that has just left does not answer either, and is forgotten soon.
        self._silent = {name: self._silent.get(name, 0) + 1 for name in seen.silent}
        if stuck := [name for name, times in self._silent.items() if times == SILENT_LOOKS]:
            self.say(f"no answer from {', '.join(stuck)}", error=True)

    @property
    def selected(self) -> str:
        """The address of the actor that keys act on, "" where there is none."""
        if self.query_one("#which", ContentSwitcher).current == "tree":
            return self.query_one(SupervisionTree).selected_key
        return self.query_one("#actors", LiveTable).selected_key

    # What is shown beside

    def action_tree(self) -> None:
        """The actors as a table, or as who supervises whom."""
        which = self.query_one("#which", ContentSwitcher)
        which.current = "actors" if which.current == "tree" else "tree"
        if which.current == "tree":
            self.query_one(SupervisionTree).show(list(self._rows.values()))
        self.query_one(f"#{which.current}").focus()

    def action_close_panel(self) -> None:
        self._described = ""
        self._stop_following()
        self.remove_class("-actor", "-logs")

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        if event.data_table.id == "actors":
            self.action_describe()

    def on_tree_node_selected(self, event: Tree.NodeSelected[str]) -> None:
        if event.node.data:
            self.action_describe()

    def action_describe(self) -> None:
        if address := self.selected:
            self._stop_following()
            self._described = address
            self.remove_class("-logs").add_class("-actor")
            self.run(self._describe(address))

    async def _describe(self, address: str) -> None:
        """As its own process has it, and how its supervisor sees it."""
        row = self._rows.get(address)
        node = row.info.node if row is not None else "main"
        ask = DescribeActor(address)
        try:
            inside = await self.session.ask(f"node.{node}", ask)
        except NoSuchActor:
            self._described = ""
            self.say(f"{address} is not there any more")
            return
        outside = None
        if "." not in address and node != "main":
            try:
                outside = await self.session.ask(MAIN, ask)
            except NoSuchActor:
                outside = None  # somebody else supervises it
        self.query_one(ActorView).show(row, inside, outside)

    def action_logs(self) -> None:
        """Of the actor under the cursor and those below it; of one with a process of its own, all that this says."""
        if address := self.selected:
            row = self._rows.get(address)
            own = row is not None and "." not in address and row.info.node == address
            wanted = FollowLogs((address,), lines=FIRST_LINES) if own else FollowLogs(actor=address, lines=FIRST_LINES)
            self._open_logs(wanted, f"Logs of {address}")

    def action_all_logs(self) -> None:
        self._open_logs(FollowLogs(lines=FIRST_LINES), "All logs")

    def _open_logs(self, wanted: FollowLogs, title: str) -> None:
        self._described = ""
        self._stop_following()
        self.remove_class("-actor").add_class("-logs")
        self.query_one(LogView).begin(title, several=not wanted.processes and not wanted.actor)
        self._followed = wanted
        self._follow(wanted)

    def _follow(self, wanted: FollowLogs) -> None:
        # In the group of the visit, so that it ends when the page is hidden.
        self._following = self.run_worker(partial(self._follow_logs, wanted), group="visit")

    async def _follow_logs(self, wanted: FollowLogs) -> None:
        view = self.query_one(LogView)
        view.begin_again()
        try:
            async with self.session.stream(MAIN, wanted) as entries:
                async for some in entries:
                    view.add(some.entries)
        except CallboardError as error:
            self.say(as_line(error), error=True)

    def _stop_following(self) -> None:
        self._followed = None
        if self._following is not None:
            self._following.cancel()
            self._following = None

    # What is done

    def action_stop(self) -> None:
        if address := self.selected:
            self.run(self._stop(address))

    async def _stop(self, address: str) -> None:
        below = sum(name.startswith(f"{address}.") for name in self._rows)
        detail = "It finishes what it has within ten seconds, and is not started again." + _below(below)
        if await self.app.push_screen_wait(Confirm(f"Stop {address}?", detail, yes="Stop")):
            await self._carry_out(
                self.session.client.stop(address, STOP_TIMEOUT_S), f"stopping {address}", f"{address} has ended"
            )

    def action_restart(self) -> None:
        if address := self.selected:
            self.run(self._restart(address))

    async def _restart(self, address: str) -> None:
        below = sum(name.startswith(f"{address}.") for name in self._rows)
        detail = "Its present life ends once the message in hand is finished, and its next one begins." + _below(below)
        if await self.app.push_screen_wait(Confirm(f"Restart {address}?", detail, yes="Restart")):
            await self._carry_out(
                self.session.client.restart(address, STOP_TIMEOUT_S), f"restarting {address}", f"{address} is back"
            )

    def action_spawn(self) -> None:
        self.run(self._spawn())

    async def _spawn(self) -> None:
        node = self.query_one("#nodes", LiveTable)
        order = await ask_what_to_spawn(self, node.selected_key if node.has_focus else "")
        if order is not None:
            await self._carry_out(spawn(self.session.client, order), f"starting {order.kind}", f"{order.kind} runs")

    async def _carry_out(self, what: Coroutine[object, object, object], doing: str, done: str) -> None:
        self.say(f"{doing} \u2026")
        await what
        self.say(done)
        self._looked_at = 0.0
        await self._look()


def _below(count: int) -> str:
    if not count:
        return ""
    return f" {count} actors below it end with it." if count > 1 else " The actor below it ends with it."


def _actor(row: ActorRow, now: float) -> tuple[str | int | float | Text | None, ...]:
    info = row.info
    return (
        info.address,
        info.kind,
        info.state,
        info.mailbox,
        row.rate,
        row.memory or None,
        info.restarts,
        info.node,
        info.pid,
        info.processed,
        info.errors,
        int(now - info.since) if info.since else None,
    )


def _node(row: NodeRow) -> tuple[str | int | float | None, ...]:
    info = row.info
    offers = ", ".join((*info.labels, f"{info.cpus:g} cpus", short_size(info.memory))) if info.accepts else ""
    return (
        info.node,
        info.host,
        info.pid,
        row.actors,
        row.rate,
        row.cpu,
        row.memory or None,
        int(row.uptime_s) or None,
        offers,
    )
