"""Runs of agents as live trees: what they think, plan, call and get; and what a person may say to them.

A run may be looked at as it was after any of its events, and begun again from there.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import ClassVar

from msgspec.structs import replace
from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

from ...runtime.errors import NoSuchActor
from ...schemas.agent import AgentRun, AttachRun, Control, ControlRun, ForkRun, ListRuns, RunInfo
from ...schemas.agent_parts import OPEN_RUNS, RunStatus
from ..coalesce import Coalesced
from ..copying import Copied, text_of
from ..ensure import ask_or_start, model_address, start
from ..following import Following
from ..person import whoami
from ..run_story import RunStory
from ..session import Session
from ..styles import beside
from ..train_view import duration
from ..widgets.ask_text import AskText
from ..widgets.call_text import details_text
from ..widgets.confirm import Confirm
from ..widgets.live_table import Cell, Column, LiveTable
from ..widgets.plan_view import PlanView
from ..widgets.run_tree import RunTree
from ..widgets.safe_text import plain, plain_line
from .base import Page
from .run_form import RunForm

AGENTS, KIND = "agents", "agent.runs"
LIST_EVERY_S = 1.0
MOST_RUNS = 200
_STYLES = {
    RunStatus.RUNNING: "cyan",
    RunStatus.WAITING: "bold yellow",
    RunStatus.PAUSED: "yellow",
    RunStatus.FINISHED: "green",
    RunStatus.STOPPED: "red",
    RunStatus.FAILED: "bold red",
    RunStatus.CANCELLED: "dim",
}


class AgentsPage(Page):
    HELP = """
## Agents

The runs, and the one under the cursor as a tree. `n` starts one, `p` pauses it or goes on, `i` says what is wanted
now, `x` ends it, `f` begins again from a step, `c` copies the step or the answer.
"""
    NAME = "agents"
    TITLE = "Agents"
    KEY = "f8"
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "New"),
        Binding("p", "pause", "Pause"),
        Binding("i", "redirect", "Redirect"),
        Binding("x", "cancel", "Cancel"),
        Binding("f", "fork", "Fork"),
        Binding("left_square_bracket", "back", "Replay", key_display="[ ]"),
        Binding("right_square_bracket", "forward", "Replay on", show=False),
        Binding("0", "live", "As it is now", show=False),
        Binding("a", "approvals", "Approvals"),
        Binding("c", "copy", "Copy", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.runs: dict[str, RunInfo] = {}
        self.stories: dict[str, RunStory] = {}
        self.moment: int | None = None
        """After how many events of the chosen run it is shown; None: as it is."""
        self._draw = Coalesced(self, self._show_run)
        self._following = Following(self, self._hear, self._draw.poke)

    def body(self) -> ComposeResult:
        with Horizontal(id="agents"):
            yield LiveTable(
                [
                    Column("task"),
                    Column("status"),
                    Column("planner"),
                    Column("steps", right=True),
                    Column("tokens", right=True, show=lambda value: f"{value:,}"),
                    Column("began", right=True),
                    Column("run"),
                ],
                title="runs",
                id="runs",
            )
            with Vertical(id="run"):
                yield Static(id="head")
                with TabbedContent():
                    with TabPane("Steps", id="tab-steps"), Horizontal(id="steps"):
                        yield RunTree()
                        with VerticalScroll(id="details"):
                            yield Static(id="detail")
                    with TabPane("Plan", id="tab-plan"):
                        yield PlanView()

    async def opened(self, session: Session) -> None:
        self.query_one(LiveTable).focus()
        self.every(LIST_EVERY_S, self._list)

    async def closed(self) -> None:
        self._following.end()

    async def _list(self) -> None:
        before = self.runs.get(self.chosen)
        try:
            found = await self.session.ask(AGENTS, ListRuns(limit=MOST_RUNS))
            self.runs = {info.run: info for info in found.runs}
        except NoSuchActor:  # no agent has run here yet
            self.runs = {}
        self._show_rows()
        self._follow_chosen()
        now = self.runs.get(self.chosen)
        if now is not None and (now != before or now.status is RunStatus.RUNNING):  # its times go on
            self._draw.poke()

    # What is shown

    @property
    def chosen(self) -> str:
        run = self.query_one("#runs", LiveTable).selected_key
        return run if run in self.runs else ""

    def _show_rows(self) -> None:
        self.query_one("#runs", LiveTable).show({run: _row(info) for run, info in self.runs.items()})
        if not self.runs:
            self.query_one("#head", Static).update(Text("no runs yet: n starts one", "dim"))

    def _show_run(self) -> None:
        run = self.chosen
        story = self.stories.get(run)
        tree, plan = self.query_one(RunTree), self.query_one(PlanView)
        if story is None:
            tree.show({}, "")
            plan.show(())
            self.query_one("#detail", Static).update("")
            return
        shown = story if self.moment is None else story.until(self.moment)
        tree.show({**self.stories, run: shown}, run)
        plan.show(shown.plan)
        self.query_one("#head", Static).update(self._head(self.runs[run], story))
        self._show_detail()

    def _head(self, info: RunInfo, story: RunStory) -> Text:
        line = Text(no_wrap=True, overflow="ellipsis").append(info.status.value, _STYLES[info.status])
        line.append_text(plain_line(f"  {info.planner}  {info.run}", "dim"))
        spent = info.spent
        tokens = f"{spent.prompt_tokens}+{spent.completion_tokens} tokens"
        line.append(f"  {spent.steps} steps, {tokens}, {duration(spent.seconds)}", "dim")
        if info.forked_from:
            line.append_text(plain_line(f"  from {info.forked_from} at {info.forked_at}", "dim"))
        if self.moment is not None:
            line.append(f"  replay: event {self.moment} of {len(story.events)}", "bold reverse")
        if info.why:
            line.append_text(plain_line(f"  {info.why}", "red"))
        return line.append("\n").append_text(plain_line(info.answer or info.task, limit=500))

    def _show_detail(self) -> None:
        run, id = self.query_one(RunTree).chosen
        story = self.stories.get(run)
        moments = story.moments if story is not None else []
        found = next((moment for moment in moments if moment.id == id), None)
        self.query_one("#detail", Static).update(details_text(found.details) if found is not None else "")

    def copied(self) -> Copied | None:
        """The plan, where that tab is open; in the list the run's answer; else the step under the cursor."""
        if self.query_one(TabbedContent).active == "tab-plan":
            return Copied(text_of(self.query_one("#plan-words")), "the plan")
        info = self.runs.get(self.chosen)
        if info is not None and self.query_one("#runs").has_focus:
            return Copied(info.answer or info.task, "the answer" if info.answer else "the task")
        return Copied(text_of(self.query_one("#detail")), "the step")

    @on(LiveTable.Chosen, "#runs")
    def _chosen(self, event: LiveTable.Chosen) -> None:
        event.stop()
        self.moment = None
        self._follow_chosen()
        self._draw.poke()

    @on(RunTree.Chosen)
    def _moment_chosen(self, event: RunTree.Chosen) -> None:
        event.stop()
        self._show_detail()

    # Following

    def _follow_chosen(self) -> None:
        if self.is_open and (run := self.chosen):
            self._follow(run)

    def _follow(self, run: str) -> None:
        story = self.stories.get(run)
        info = self.runs.get(run)
        is_whole = story is not None and info is not None and info.ended_at and len(story.events) >= info.events
        if not is_whole:
            self._following.follow(run)

    async def _hear(self, run: str) -> None:
        """The run's events, and those of the runs that it starts, until it ends."""
        story = self.stories.setdefault(run, RunStory(run))
        async with aclosing(self.session.stream(AGENTS, AttachRun(run, len(story.events)))) as entries:
            async for entry in entries:
                story.add(entry.event)
                child = story.moments[-1].child if story.moments else ""
                if child:
                    self._follow(child)
                self._draw.poke()

    # Time

    def action_back(self) -> None:
        """One event earlier."""
        if (story := self.stories.get(self.chosen)) is not None:
            self.moment = max(1, (len(story.events) if self.moment is None else self.moment) - 1)
            self._show_run()

    def action_forward(self) -> None:
        if self.moment is not None and (story := self.stories.get(self.chosen)) is not None:
            self.moment = self.moment + 1 if self.moment + 1 < len(story.events) else None
            self._show_run()

    def action_live(self) -> None:
        self.moment = None
        self._show_run()

    # Actions

    def action_new(self) -> None:
        self.run(self._new())

    async def _new(self) -> None:
        wanted = await self.app.push_screen_wait(RunForm())
        if wanted is None:
            return
        request, model = wanted
        self.say("starting …")
        info = await self._begin(request, model)
        await self._list()
        self.query_one("#runs", LiveTable).select(info.run)
        self.say("")

    async def _begin(self, request: AgentRun, model: str) -> RunInfo:
        session = self.session
        if [name for name in request.tools if name != "ask_human"]:
            await start(session, "tool.directory", "tools")
        if request.memory:
            await start(session, "agent.memory", request.memory, process=True)
        request = replace(request, model_address=await model_address(session, model))
        return await ask_or_start(session, AGENTS, KIND, request, process=True)

    def action_pause(self) -> None:
        """Begin no further step; or go on."""
        if run := self.chosen:
            paused = self.runs[run].status is RunStatus.PAUSED
            self.run(self._control(run, Control.RESUME if paused else Control.PAUSE))

    def action_redirect(self) -> None:
        self.run(self._redirect())

    async def _redirect(self) -> None:
        run = self.chosen
        text = await self.app.push_screen_wait(AskText("What is wanted now?")) if run else None
        if text:
            await self._control(run, Control.REDIRECT, text)

    def action_cancel(self) -> None:
        self.run(self._cancel())

    async def _cancel(self) -> None:
        run = self.chosen
        if run and self.runs[run].status in OPEN_RUNS:
            if await self.app.push_screen_wait(Confirm("End this run?", self.runs[run].task)):
                await self._control(run, Control.CANCEL)

    async def _control(self, run: str, what: Control, text: str = "") -> None:
        info = await self.session.ask(AGENTS, ControlRun(run, what, text, whoami()))
        self.runs[run] = info
        self._show_rows()
        self._draw.poke()

    def action_fork(self) -> None:
        """A new run that begins as this one did, up to the step under the cursor."""
        self.run(self._fork())

    async def _fork(self) -> None:
        run = self.chosen
        story = self.stories.get(run)
        if story is None:
            return
        of, id = self.query_one(RunTree).chosen
        moments = {moment.id: moment for moment in story.moments} if of == run else {}
        at = moments[id].number if id in moments else len(story.events)
        if self.moment is not None:
            at = min(at, self.moment)
        where = f"after {id}" if id in moments and moments[id].is_step else f"after event {at}"
        text = await self.app.push_screen_wait(
            AskText(f"Begin again {where}. What is wanted now? (empty: the same)")
        )  # fmt: skip
        if text is None:
            return
        info = await self.session.ask(AGENTS, ForkRun(run=run, at=at, text=text, by=whoami()))
        await self._list()
        self.query_one("#runs", LiveTable).select(info.run)

    async def action_approvals(self) -> None:
        await self.board.show_page("approvals")


def _row(info: RunInfo) -> list[Cell]:
    began = time.strftime("%H:%M:%S", time.localtime(info.began_at)) if info.began_at else ""
    task = f"↳ {info.task}" if info.parent else info.task
    return [
        plain_line(task, limit=40),
        Text(info.status.value, _STYLES[info.status]),
        info.planner,
        info.spent.steps,
        info.spent.prompt_tokens + info.spent.completion_tokens,
        began,
        plain(info.run, "dim"),
    ]
