"""The model store: what is in it with sizes, what can be had, pulls and quantizations with their progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.widgets import DataTable, Static

from ...schemas.models import (
    CancelStoreJob,
    CompareModels,
    PullModel,
    StoreJob,
    StoreJobState,
    StoreListing,
)
from ..census import short_size
from ..copying import Copied, text_of
from ..session import Session
from ..store_access import ask_store, list_store
from ..styles import beside
from ..widgets.comparison import Comparison
from ..widgets.confirm import Confirm
from ..widgets.fields_dialog import Field, FieldsDialog
from ..widgets.live_table import LiveTable
from ..widgets.safe_text import plain, plain_line
from .base import Page
from .loading_model import ask_what_to_load, load_model
from .models_rows import JOBS, MODELS, about_job, about_model, installed_cells, job_cells, rows_to_be_had
from .quantizing import ask_how_to_quantize

if TYPE_CHECKING:
    from ...schemas.base import Request

LOOK_EVERY_S = 0.5
# While no job runs, the store is looked at only now and then: others may change it.
LOOK_AT_REST_S = 5.0


class ModelsPage(Page):
    """Jobs are the store's own: they go on when this page, or this app, is closed."""

    HELP = """
## Models

`p` pulls, `z` quantizes, `n` serves the model under the cursor; `d` describes it, space marks it and `v` compares
those that are marked. `x` cancels a job. `c` copies what is described, or the line.
"""
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
        Binding("c", "copy", "Copy", show=False),
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
        self.query_one("#jobs", LiveTable).show({str(job.job): job_cells(job, time.time()) for job in listing.jobs})
        self.set_class(bool(listing.jobs), "-jobs")
        self._tell_of_ends(listing.jobs)
        if self._described:
            self._describe(self._described)

    def _show_models(self, listing: StoreListing) -> None:
        self.marked = [name for name in self.marked if any(one.name == name for one in listing.models)]
        rows = {one.name: installed_cells(one, one.name in self.marked) for one in listing.models}
        self.query_one("#models", LiveTable).show({**rows, **rows_to_be_had(listing)})

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
            panel.query_one(Static).update(about_model(model))
        elif job is not None:
            panel.query_one(Static).update(about_job(job))
        else:
            known = next((one for one in listing.known if one.name == what), None)
            about = f"{known.description}, {known.license}, {short_size(known.size)}" if known is not None else ""
            panel.query_one(Static).update(plain(f"{about}\nnot in the store: p pulls it"))

    def copied(self) -> Copied | None:
        """What is described, while that is open, else the row."""
        if self.has_class("-about"):
            return Copied(text_of(self.query_one("#about")), "the description")
        return super().copied()

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
