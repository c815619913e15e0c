"""The model store: what is in it with sizes, what can be had, pulls and quantizations with their progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from ...schemas.models import (
    CancelStoreJob,
    CompareModels,
    InstalledModel,
    PullModel,
    StoreJob,
    StoreJobState,
    StoreListing,
    StoreWork,
)
from ..census import short_size, short_time
from ..session import Session
from ..store_access import ask_store, list_store
from ..styles import beside
from ..widgets.comparison import Comparison
from ..widgets.dialog import Confirm
from ..widgets.fields_dialog import Field, FieldsDialog
from ..widgets.live_table import Column, LiveTable
from ..widgets.safe_text import plain, plain_line
from .base import Page
from .loading_model import ask_what_to_load, load_model
from .quantizing import ask_how_to_quantize

if TYPE_CHECKING:
    from ...schemas.base import Request

LOOK_EVERY_S = 0.5
# While no job runs, the store is looked at only now and then: others may change it.
LOOK_AT_REST_S = 5.0
BAR_WIDTH = 16

MODELS = (
    Column("model"),
    Column("size", right=True, show=short_size, width=6),
    Column("state", width=9),
    Column("license"),
    Column("files", right=True),
    Column("description"),
)
JOBS = (
    Column("job", right=True),
    Column("work"),
    Column("model"),
    Column("state"),
    Column("progress", width=BAR_WIDTH + 6),
    Column("stage"),
    Column("of", right=True),
    Column("time", right=True, show=short_time, width=7),
    Column("left", right=True, show=short_time, width=7),
)


class ModelsPage(Page):
    """Jobs are the store's own: they go on when this page, or this app, is closed."""

    NAME = "models"
    TITLE = "Models"
    KEY = "f6"
    DEFAULT_CSS = beside(__file__)
    AUTO_FOCUS = "#models"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pull", "Pull"),
        Binding("z", "quantize", "Quantize"),
        Binding("n", "load", "Serve"),
        Binding("x", "cancel", "Cancel job"),
        Binding("d", "describe", "Describe"),
        Binding("space", "mark", "Mark"),
        Binding("v", "compare", "Compare"),
        Binding("escape", "close_panel", "Close", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._listing: StoreListing | None = None
        self._looked_at = 0.0
        self._told: dict[int, StoreJobState] = {}
        self._described = ""
        self.marked: list[str] = []

    def body(self) -> ComposeResult:
        with Vertical(id="store"):
            yield Static(id="place")
            yield LiveTable(MODELS, title="Models", sort=0, id="models")
            yield LiveTable(JOBS, title="Jobs", sort=0, reverse=True, id="jobs")
        with VerticalScroll(id="about"):
            yield Static()

    async def opened(self, session: Session) -> None:
        self._looked_at = 0.0
        self.every(LOOK_EVERY_S, self._look)

    async def _look(self) -> None:
        now = time.monotonic()
        if not self._is_working and now - self._looked_at < LOOK_AT_REST_S:
            return
        listing = await list_store(self.session)
        if not self.query("#models"):
            return  # the app is ending, and took its widgets away
        self._looked_at = now
        self._listing = listing
        self._show_models(listing)
        self.query_one("#place", Static).update(
            plain_line(f" {listing.root}, {short_size(listing.free_bytes)} free", "dim")
        )
        self.query_one("#jobs", LiveTable).show({str(job.job): _job(job, time.time()) for job in listing.jobs})
        self.set_class(bool(listing.jobs), "-jobs")
        self._tell_of_ends(listing.jobs)
        if self._described:
            self._describe(self._described)

    def _show_models(self, listing: StoreListing) -> None:
        self.marked = [name for name in self.marked if any(one.name == name for one in listing.models)]
        rows = {one.name: _installed(one, one.name in self.marked) for one in listing.models}
        self.query_one("#models", LiveTable).show({**rows, **_to_be_had(listing)})

    @property
    def _is_working(self) -> bool:
        jobs = self._listing.jobs if self._listing is not None else ()
        return any(job.state is StoreJobState.RUNNING for job in jobs)

    def _tell_of_ends(self, jobs: tuple[StoreJob, ...]) -> None:
        """Say what became of the jobs that ran when they were last seen."""
        for job in reversed(jobs):
            before, self._told[job.job] = self._told.get(job.job), job.state
            if before is not StoreJobState.RUNNING or job.state is before:
                continue
            if job.error is not None:
                hint = f" ({job.error.hint})" if job.error.hint else ""
                self.say(f"{job.name}: {job.error.message}{hint}", error=True)
            else:
                self.say(f"{job.name}: {job.work} {job.state}")

    @property
    def selected(self) -> str:
        """The model that keys act on, there or not."""
        return self.query_one("#models", LiveTable).selected_key

    @property
    def selected_job(self) -> StoreJob | None:
        """The job under the cursor; where none is, the one that runs."""
        listing, table = self._listing, self.query_one("#jobs", LiveTable)
        jobs = {str(job.job): job for job in listing.jobs} if listing is not None else {}
        chosen = jobs.get(table.selected_key) if table.has_focus else None
        return chosen or next((job for job in jobs.values() if job.state is StoreJobState.RUNNING), None)

    # What is shown beside

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.action_describe()

    def action_describe(self) -> None:
        jobs = self.query_one("#jobs", LiveTable)
        self._described = f"job {jobs.selected_key}" if jobs.has_focus else self.selected
        self.set_class(bool(self._described), "-about")
        self.set_class(not jobs.has_focus, "-of-model")
        self._describe(self._described)

    def action_close_panel(self) -> None:
        self._described = ""
        self.remove_class("-about")

    def _describe(self, what: str) -> None:
        listing = self._listing
        if listing is None:
            return
        model = next((one for one in listing.models if one.name == what), None)
        job = next((one for one in listing.jobs if f"job {one.job}" == what), None)
        panel = self.query_one("#about", VerticalScroll)
        panel.border_title = plain(what).markup
        if model is not None:
            panel.query_one(Static).update(_about_model(model))
        elif job is not None:
            panel.query_one(Static).update(_about_job(job))
        else:
            known = next((one for one in listing.known if one.name == what), None)
            about = f"{known.description}, {known.license}, {short_size(known.size)}" if known is not None else ""
            panel.query_one(Static).update(plain(f"{about}\nnot in the store: p pulls it"))

    # Results side by side

    def action_mark(self) -> None:
        """Of those that `v` compares, or not any more."""
        listing, name = self._listing, self.selected
        if listing is None or not any(one.name == name for one in listing.models):
            self.say("put the cursor on a model that is in the store")
            return
        self.marked = [one for one in self.marked if one != name] if name in self.marked else [*self.marked, name]
        self._show_models(listing)

    def action_compare(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        names = tuple(self.marked)
        if len(names) < 2:
            fields = [Field("models", "Models", " ".join(names), placeholder="smollm2-gptq4 ./my-adapter", needed=True)]
            detail = "Names of the store, or folders of models and adapters on its machine, with spaces between them."
            values = await self.app.push_screen_wait(
                FieldsDialog("Whose results?", fields, detail=detail, yes="Compare")
            )
            if values is None:
                return
            names = tuple(values["models"].split())
        comparison = await ask_store(self.session, CompareModels(names))
        await self.app.push_screen_wait(Comparison(comparison.results))

    # What is done

    def action_pull(self) -> None:
        self.run(self._pull())

    async def _pull(self) -> None:
        listing = self._listing or await list_store(self.session)
        missing = [known.name for known in listing.known]
        value = self.selected if self.selected in missing else ""
        fields = [
            Field("model", "Model", value, suggest=[*missing, "hf:", "ms:"], needed=True),
            Field("force", "If it is there", "no", [("no", "leave it"), ("yes", "fetch it again")]),
        ]
        detail = "smollm2, hf:ORG/NAME[@REVISION], hf:ORG/NAME/FILE.gguf, ms:ORG/NAME. It is fetched by the daemon."
        values = await self.app.push_screen_wait(FieldsDialog("Pull a model", fields, detail=detail, yes="Pull"))
        if values is not None:
            await self._begin(PullModel(values["model"], values["force"] == "yes"))

    def action_quantize(self) -> None:
        names = [one.name for one in self._listing.models] if self._listing is not None else []
        if self.selected in names:
            self.run(self._quantize(self.selected))
        else:
            self.say("put the cursor on a model that is in the store")

    async def _quantize(self, model: str) -> None:
        request = await ask_how_to_quantize(self, model)
        if request is not None:
            await self._begin(request)

    async def _begin(self, request: Request[StoreJob]) -> None:
        job = await ask_store(self.session, request)
        self._told[job.job] = StoreJobState.RUNNING
        self.say(f"job {job.job}: {job.work} {job.model}")
        self._looked_at = 0.0
        await self._look()

    def action_cancel(self) -> None:
        if (job := self.selected_job) is None or job.state is not StoreJobState.RUNNING:
            self.say("no job runs")
        else:
            self.run(self._cancel(job))

    async def _cancel(self, job: StoreJob) -> None:
        detail = "What it has done stays, and the same work goes on from there when it is asked for again."
        if await self.app.push_screen_wait(Confirm(f"Cancel {job.work} {job.model}?", detail, yes="Cancel it")):
            await ask_store(self.session, CancelStoreJob(job.job))

    def action_load(self) -> None:
        if model := self.selected:
            self.run(self._load(model))

    async def _load(self, model: str) -> None:
        taken = {info.address for info in await self.session.client.actors()}
        order = await ask_what_to_load(self, taken, model)
        if order is not None:
            self.say(f"loading {order.model} \u2026")
            await load_model(self.session.client, order)
            self.say(f"{order.model} is served by {order.name}")


def _installed(model: InstalledModel, marked: bool) -> tuple[str | int, ...]:
    return (
        model.name,
        model.size,
        "here \u2713" if marked else "here",
        model.license,
        len(model.files),
        model.description,
    )


def _to_be_had(listing: StoreListing) -> dict[str, tuple[str | int | Text | None, ...]]:
    """What could be pulled by name, and what is just being made."""
    rows: dict[str, tuple[str | int | Text | None, ...]] = {
        known.name: (known.name, known.size, "to pull", known.license, None, known.description)
        for known in listing.known
    }
    there = {model.name for model in listing.models}
    for job in listing.jobs:
        if job.state is StoreJobState.RUNNING and job.name not in there:
            size = job.total if job.work is StoreWork.PULL else None
            rows[job.name] = (job.name, size or None, "coming", "", None, f"{job.work} of {job.model}")
    return rows


def _job(job: StoreJob, now: float) -> tuple[str | int | float | None, ...]:
    running = job.state is StoreJobState.RUNNING
    took = (now if running else job.ended) - job.started
    part = job.done / job.total if job.total else (0.0 if running or job.error else 1.0)
    left = took * (1 - part) / part if running and part > 0.02 else None
    of = ""
    if job.total:
        counts = (job.done, job.total)
        done, total = map(short_size, counts) if job.work is StoreWork.PULL else map(str, counts)
        of = f"{done} of {total}"
    what = job.model if job.model == job.name else f"{job.model} \u2192 {job.name}"
    return (job.job, job.work.value, what, job.state.value, bar(part), job.stage, of, int(took), left)


def bar(part: float, width: int = BAR_WIDTH) -> str:
    """`████░░░░  50%`."""
    done = round(min(max(part, 0.0), 1.0) * width)
    return "\u2588" * done + "\u2591" * (width - done) + f" {100 * part:3.0f}%"


def _about_model(model: InstalledModel) -> Text:
    text = plain(f"{model.description}\n")
    for label, value in (("license", model.license), ("from", model.source), ("size", f"{model.size:,} bytes")):
        text.append(f"{label:<9}", "dim")
        text.append_text(plain(f"{value}\n"))
    text.append("\n")
    for file in model.files:
        text.append_text(plain(f"{short_size(file.size):>6}  {file.name}\n"))
        text.append_text(plain(f"        {file.sha256}\n", "dim"))
    return text


def _about_job(job: StoreJob) -> Text:
    text = plain(f"{job.work} {job.model}, {job.state}\n")
    if job.error is not None:
        text.append_text(plain(f"\n{job.error.message}\n", "bold"))
        text.append_text(plain(f"{job.error.hint}\n"))
        if job.error.detail:
            text.append_text(plain(f"\n{job.error.detail}", "dim"))
    report = job.report
    if report is not None:
        for label, value in (
            ("method", f"{report.method}, {report.bits} bits in groups of {report.group_size}"),
            ("size", f"{short_size(report.bytes_before)} \u2192 {short_size(report.bytes_after)}"),
            ("bits", f"{report.bits_per_weight:.2f} a weight"),
            ("perplexity", f"{report.perplexity_before:.2f} \u2192 {report.perplexity_after:.2f}"),
            ("agreement", f"{100 * report.token_agreement:.1f}% of next tokens"),
            ("tokens", f"{report.calibration_tokens:,} of {report.calibration}"),
        ):
            text.append(f"\n{label:<11}", "dim")
            text.append_text(plain(value))
    return text
