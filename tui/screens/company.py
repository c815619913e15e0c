"""The company: every node, process and actor, how they do, and what can be done with them."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.widgets import ContentSwitcher, DataTable, Tree
from textual.worker import Worker

from ...runtime.census import seen_by
from ...runtime.client import MAIN
from ...runtime.errors import CallboardError, NoSuchActor
from ...schemas.inspecting import DescribeActor, FollowLogs
from ...schemas.runtime import DrainNode, NodeInfo
from ..census import ActorRow, NodeRow, Pace, Seen, look
from ..copying import Copied, text_of
from ..node_ends import NodeEnd, NodeKind
from ..session import Session, as_line
from ..styles import beside
from ..widgets.actor_view import ActorView
from ..widgets.confirm import Confirm
from ..widgets.live_table import LiveTable
from ..widgets.log_view import LogView
from ..widgets.supervision_tree import SupervisionTree
from .base import Page
from .company_rows import ACTORS, NODES, actor_cells, node_cells
from .spawning import ask_what_to_spawn, spawn

if TYPE_CHECKING:
    from collections.abc import Coroutine

LOOK_EVERY_S = 1.0
# Beyond so many actors a look costs the nodes more than somebody gains who reads them each second.
MANY = 2000
LOOK_AT_MANY_EVERY_S = 5.0
FIRST_LINES = 200
STOP_TIMEOUT_S = 10.0
RESTARTING = "Its present life ends once the message in hand is finished, and its next one begins."
# A node that answered none of so many looks is stuck.
SILENT_LOOKS = 20


class CompanyPage(Page):
    """The actors are what keys act on: the one under the cursor of the table, or of the tree. Stop and restart act on
    a node while the table of nodes is in focus."""

    HELP = """
## Company

Every node and every actor. `d` describes and `l` shows the log of the actor under the cursor, `t` shows the tree, `n`
spawns, `c` copies. `r` and `x` restart and stop: the actor under the cursor, or the process or node where the table
of nodes is in focus. Each asks first.
"""
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
        Binding("c", "copy", "Copy", show=False),
        Binding("L", "all_logs", "All logs", show=False),
        Binding("escape", "close_panel", "Close", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace()
        self._rows: dict[str, ActorRow] = {}
        self._node_rows: dict[str, NodeRow] = {}
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
        self._node_rows = {row.info.node: row for row in nodes}
        self._show(seen, nodes, actors)
        if self._described:
            await self._describe(self._described)

    def _show(self, seen: Seen, nodes: list[NodeRow], actors: list[ActorRow]) -> None:
        now = time.time()
        self.query_one("#actors", LiveTable).show({row.info.address: actor_cells(row, now) for row in actors})
        self.query_one("#nodes", LiveTable).show({row.info.node: node_cells(row) for row in nodes})
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

    @property
    def selected_node(self) -> NodeInfo | None:
        """The node that stop and restart act on, where the table of nodes is in focus."""
        table = self.query_one("#nodes", LiveTable)
        row = self._node_rows.get(table.selected_key) if table.has_focus else None
        return row.info if row is not None else None

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

    def copied(self) -> Copied | None:
        """What is open beside the tables, else a row, or the address in the tree."""
        if self.has_class("-actor"):
            return Copied(text_of(self.query_one(ActorView)), "the description")
        if self.has_class("-logs"):
            return Copied(self.query_one(LogView).as_text(), "the log")
        if self.query_one("#tree").has_focus:
            return Copied(self.selected, "the address")
        return super().copied()

    # What is done

    def action_stop(self) -> None:
        if (node := self.selected_node) is not None:
            self.run(self._stop_node(node))
        elif address := self.selected:
            self.run(self._stop(address))

    async def _stop(self, address: str) -> None:
        below = sum(name.startswith(f"{address}.") for name in self._rows)
        detail = "It finishes what it has within ten seconds, and is not started again." + _below(below)
        if await self._confirmed(f"Stop {address}?", detail, "Stop"):
            await self._carry_out(
                self.session.client.stop(address, STOP_TIMEOUT_S), f"stopping {address}", f"{address} has ended"
            )

    async def _end_of(self, info: NodeInfo) -> NodeEnd:
        """Asked anew: what is about to end must not be what was there a second ago."""
        names = [one.node for one in await self.session.client.nodes()]
        return NodeEnd.of(info, await seen_by(self.session.client.node, names))

    async def _stop_node(self, info: NodeInfo) -> None:
        node, name = await self._end_of(info), info.node
        drains = node.kind is NodeKind.JOINED
        if await self._confirmed(*node.stopping(), "Drain" if drains else "End"):
            if drains:
                draining = self.session.ask(f"node.{name}", DrainNode())
                await self._carry_out(draining, f"draining {name}", f"{name} finishes what it has and leaves")
            else:
                stopping = self.session.client.stop(name, STOP_TIMEOUT_S)
                await self._carry_out(stopping, f"ending {name}", f"the process of {name} has ended")

    def action_restart(self) -> None:
        if (node := self.selected_node) is not None:
            self.run(self._restart_node(node))
        elif address := self.selected:
            self.run(self._restart(address))

    async def _restart_node(self, info: NodeInfo) -> None:
        await self._restart(info.node, *(await self._end_of(info)).restarting())

    async def _restart(self, address: str, question: str = "", detail: str = "") -> None:
        below = sum(name.startswith(f"{address}.") for name in self._rows)
        if not detail:
            question, detail = f"Restart {address}?", RESTARTING + _below(below)
        if await self._confirmed(question, detail, "Restart"):
            await self._carry_out(
                self.session.client.restart(address, STOP_TIMEOUT_S), f"restarting {address}", f"{address} is back"
            )

    async def _confirmed(self, question: str, detail: str, yes: str) -> bool:
        return await self.app.push_screen_wait(Confirm(question, detail, yes=yes))

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
