"""Training jobs: how far each is, their curves over each other, what the model says on its way, and their controls."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any, ClassVar

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

from ...runtime.errors import NoSuchActor
from ...runtime.plot_terminal import STYLES
from ...schemas.train import (
    CancelTraining,
    FollowTraining,
    JobState,
    ListTraining,
    PauseTraining,
    ResumeTraining,
    RunTraining,
    TrainJob,
    TrainProgress,
)
from ..coalesce import Coalesced
from ..copying import Copied, text_of
from ..ensure import ask_or_start
from ..following import Following
from ..session import Session
from ..styles import beside
from ..train_view import TrainView, duration
from ..widgets.confirm import Confirm
from ..widgets.curves import Curves
from ..widgets.live_table import Cell, Column, LiveTable
from ..widgets.safe_text import plain
from .base import Page
from .train_form import KIND, TRAIN, TrainForm

LIST_EVERY_S = 5.0
ACTIVE = (JobState.STARTING, JobState.RUNNING)
# A pause is answered when its checkpoint is written, which takes a large model minutes.
CONTROL_TIMEOUT_S = 900.0
_BAR = 10
_STATES = {
    JobState.STARTING: "cyan",
    JobState.RUNNING: "green",
    JobState.PAUSED: "yellow",
    JobState.FINISHED: "",
    JobState.FAILED: "bold red",
    JobState.CANCELLED: "dim",
}


class TrainingPage(Page):
    HELP = """
## Training

The jobs, and the curves, samples and events of the one under the cursor. `n` starts a run, `p` pauses, `r` goes on,
`x` ends one; space lays its curves over the others. `c` copies samples, events, or the line.
"""
    NAME = "training"
    TITLE = "Training"
    KEY = "f7"
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "new", "New"),
        Binding("space", "overlay", "Overlay"),
        Binding("p", "pause", "Pause"),
        Binding("r", "resume", "Resume"),
        Binding("x", "cancel", "Cancel"),
        Binding("c", "copy", "Copy", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, TrainJob] = {}
        self.views: dict[str, TrainView] = {}
        self.overlaid: list[str] = []
        self._progress: dict[str, TrainProgress] = {}
        self._rows = Coalesced(self, self._show_rows)
        self._details = Coalesced(self, self._show_details)
        self._following = Following(self, self._hear, self._rows.poke)

    def body(self) -> ComposeResult:
        with Vertical():
            yield LiveTable(
                [
                    Column("job"),
                    Column("state"),
                    Column("step", right=True),
                    Column("done", width=_BAR + 5),
                    Column("loss", right=True, show=lambda value: f"{value:.4g}"),
                    Column("left", right=True),
                    Column("tokens/s", right=True, show=lambda value: f"{value:,.0f}"),
                    Column("model"),
                ],
                title="jobs",
                id="jobs",
            )
            with TabbedContent(id="about"):
                with TabPane("Curves", id="tab-curves"):
                    yield Curves()
                with TabPane("Samples", id="tab-samples"), VerticalScroll():
                    yield Static(id="samples")
                with TabPane("Events", id="tab-events"), VerticalScroll():
                    yield Static(id="events")

    async def opened(self, session: Session) -> None:
        self.query_one(LiveTable).focus()
        self.every(LIST_EVERY_S, self._list)
        async with session.listen("topic.train.progress.*", TrainProgress, TrainJob) as news:
            async for _, message in news:
                if isinstance(message, TrainProgress):
                    self._progress[message.job] = message
                else:
                    self.jobs[message.job] = message
                if message.job not in self.jobs:
                    await self._list()
                self._rows.poke()

    async def closed(self) -> None:
        self._following.end()

    async def _list(self) -> None:
        try:
            found = await self.session.ask(TRAIN, ListTraining())
            self.jobs = {job.job: job for job in reversed(found.jobs)}
        except NoSuchActor:  # nothing was ever trained here
            self.jobs = {}
        self._show_rows()

    # What is shown

    @property
    def runs_shown(self) -> list[str]:
        """The job under the cursor, and those that lie over it."""
        chosen = self.query_one(LiveTable).selected_key
        others = [job for job in self.overlaid if job != chosen and job in self.jobs]
        return [chosen, *others] if chosen else others

    def _show_rows(self) -> None:
        places = {job: place for place, job in enumerate(self.runs_shown)}
        self.query_one(LiveTable).show({job: self._row(one, places.get(job)) for job, one in self.jobs.items()})
        self._follow_shown()
        if not self.jobs:
            self.query_one("#samples", Static).update(Text("no training yet: n starts a run", "dim"))
        self._details.poke()

    def _row(self, job: TrainJob, place: int | None) -> list[Cell]:
        last = self._progress.get(job.job)
        step, num_steps, loss = job.step, job.num_steps, job.loss
        if last is not None and (last.step >= step or job.state in ACTIVE):
            step, num_steps, loss = last.step, last.num_steps, last.loss or loss
        active = job.state in ACTIVE
        mark = Text("━ ", STYLES[place % len(STYLES)]) if place is not None else Text("  ")
        return [
            mark.append_text(plain(job.job)),
            Text(job.state.value, _STATES[job.state]),
            f"{step}/{num_steps}" if num_steps else "",
            progress_bar(step, num_steps) if num_steps else None,
            loss or None,
            duration(last.eta_s) if active and last is not None else "",
            last.tokens_per_s if active and last is not None else None,
            job.model,
        ]

    def _show_details(self) -> None:
        names = self.runs_shown
        views = [self.views[job] for job in names if job in self.views]
        self.query_one(Curves).show(views, any_chosen=bool(names))
        if not names:
            return
        view = views[0] if views and views[0].job == names[0] else None
        self.query_one("#samples", Static).update(_samples(view))
        self.query_one("#events", Static).update(_events(self.jobs.get(names[0]), view))

    @on(LiveTable.Chosen)
    def _chosen(self, event: LiveTable.Chosen) -> None:
        event.stop()
        self._rows.poke()

    def copied(self) -> Copied | None:
        """The samples or the events, where that tab is open, else the job's row."""
        tab = self.query_one(TabbedContent).active.removeprefix("tab-")
        if tab in ("samples", "events"):
            return Copied(text_of(self.query_one(f"#{tab}")), f"the {tab}")
        return super().copied()

    # Following

    def _follow_shown(self) -> None:
        if not self.is_open:
            return
        for job in self.runs_shown:
            known, view = self.jobs.get(job), self.views.get(job)
            if known is not None and (view is None or known.state in ACTIVE or view.last is None):
                self._following.follow(job)

    async def _hear(self, job: str) -> None:
        """All events of a job, until it ends; what was known stays until they are here."""
        view = TrainView(job)
        async with aclosing(self.session.stream(TRAIN, FollowTraining(job))) as events:
            async for event in events:
                view.add(event)
                before = self.views.get(job)
                if before is None or before is view or view.curves.last_step >= before.curves.last_step:
                    self.views[job] = view
                    self._details.poke()
        self.views[job], self.jobs[job] = view, events.result

    # Actions

    def action_new(self) -> None:
        self.run(self._new())

    async def _new(self) -> None:
        wanted = await self.app.push_screen_wait(TrainForm(self.session))
        if wanted is None:
            return
        config, name = wanted
        self.say("starting …")
        job = await ask_or_start(self.session, TRAIN, KIND, RunTraining(config, name))
        await self._list()
        self.query_one(LiveTable).select(job.job)
        self.say(f"{job.job} is {job.state.value}")

    def action_overlay(self) -> None:
        """Draw the curves of the job under the cursor beside those of the others, or no more."""
        job = self.query_one(LiveTable).selected_key
        if job in self.overlaid:
            self.overlaid.remove(job)
        elif job:
            self.overlaid.append(job)
        self._show_rows()

    def action_pause(self) -> None:
        self._control("pausing", lambda job: PauseTraining(job))

    def action_resume(self) -> None:
        self._control("going on with", lambda job: ResumeTraining(job))

    def action_cancel(self) -> None:
        if job := self.query_one(LiveTable).selected_key:
            self.run(self._cancel(job))

    async def _cancel(self, job: str) -> None:
        if await self.app.push_screen_wait(
            Confirm(f"End the run {job}?", "Its checkpoints stay; r goes on from them.")
        ):
            await self._ask(CancelTraining(job))

    def _control(self, doing: str, make: Any) -> None:
        if job := self.query_one(LiveTable).selected_key:
            self.run(self._ask(make(job)), doing=f"{doing} {job}")

    async def _ask(self, request: PauseTraining | ResumeTraining | CancelTraining) -> None:
        job = await self.session.ask(TRAIN, request, CONTROL_TIMEOUT_S)
        self.jobs[job.job] = job
        self._show_rows()


def progress_bar(step: int, num_steps: int) -> Text:
    share = min(1.0, step / num_steps)
    done = round(share * _BAR)
    return Text("█" * done, "green").append("░" * (_BAR - done), "dim").append(f" {share:.0%}")


def _samples(view: TrainView | None) -> Text:
    if view is None or not view.samples:
        return Text("no samples: samples.prompts and samples.every of a run's settings ask for them", "dim")
    text = Text()
    for sample in reversed(view.samples[-50:]):
        text.append(f"step {sample.step}\n", "bold")
        text.append_text(plain(f"{sample.prompt}\n", "cyan")).append_text(plain(f"{sample.text}\n\n"))
    return text


def _events(job: TrainJob | None, view: TrainView | None) -> Text:
    text = Text()
    if job is not None:
        if job.error is not None:
            text.append_text(plain(f"{job.error.message}\n", "bold red"))
            text.append_text(plain(f"{job.error.hint}\n" if job.error.hint else "", "red"))
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.started)) if job.started else "not yet"
        ended = f", {duration(job.ended - job.started)}" if job.ended else ""
        for name, value in (("data", job.data), ("out", job.out), ("folder", job.folder), ("began", began + ended)):
            text.append(f"{name:8}", "dim").append_text(plain(f"{value}\n"))
    for note in reversed(view.notes if view is not None else []):
        text.append_text(plain(f"{note}\n"))
    return text
