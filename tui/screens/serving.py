"""Serving: the engines, what runs and waits in them, their caches as maps, how soon tokens come, and their adapters."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static, TabbedContent, TabPane

from ...schemas.serve import AdapterInfo, ListAdapters, LoadAdapter, UnloadAdapter
from ...schemas.serve_stats import EngineDetail, EngineStats, LaneStats
from ..census import short_rate, short_size, short_time
from ..serving_figures import (
    RECENT_S,
    Served,
    ask_engines,
    find_engines,
    mean_recent,
    milliseconds,
    share,
)
from ..session import Session
from ..styles import beside
from ..widgets.block_map import BlockMap
from ..widgets.choose import Choose
from ..widgets.confirm import Confirm
from ..widgets.fields_dialog import Field, FieldsDialog
from ..widgets.live_table import Column, LiveTable
from ..widgets.sparkline_row import SparklineRow
from .base import Page
from .loading_model import ask_what_to_load, load_model

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

LOOK_EVERY_S = 1.0
# Who serves is asked of every node, so less often.
FIND_EVERY_S = 5.0
ADAPTER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0

ENGINES = (
    Column("engine"),
    Column("model"),
    Column("weights"),
    Column("run", right=True),
    Column("wait", right=True),
    Column("tok/s", right=True, show=short_rate),
    Column("cache", right=True, show=lambda share: f"{100 * share:.0f}%"),
    Column("hits", right=True, show=lambda share: f"{100 * share:.0f}%"),
    Column("done", right=True, show=lambda n: f"{n:,}"),
)
REQUESTS = (
    Column("id", right=True),
    Column("state"),
    Column("client"),
    Column("prompt", right=True, show=lambda n: f"{n:,}"),
    Column("cached", right=True, show=lambda n: f"{n:,}"),
    Column("answer", right=True),
    Column("blocks", right=True),
    Column("age", right=True, show=short_time),
    Column("adapter"),
    Column("prio", right=True),
    Column("replica"),
)
REPLICAS = (
    Column("replica"),
    Column("state"),
    Column("device"),
    Column("kernels"),
    Column("run", right=True),
    Column("wait", right=True),
    Column("blocks", right=True),
    Column("weights", right=True, show=short_size),
    Column("cache", right=True, show=short_size),
    Column("note"),
)
ADAPTERS = (
    Column("adapter"),
    Column("rank", right=True),
    Column("size", right=True, show=short_size),
    Column("path"),
)


class ServingPage(Page):
    """What is below the table of engines is that of the engine under its cursor."""

    HELP = """
## Serving

Below the engines is what is of the one under the cursor. `n` loads a model, `x` unloads one, `a` and `z` add and
remove adapters. `c` copies the line under the cursor.
"""
    NAME = "serving"
    TITLE = "Serving"
    KEY = "f5"
    DEFAULT_CSS = beside(__file__)
    AUTO_FOCUS = "#engines"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "load", "Load model"),
        Binding("x", "unload", "Unload"),
        Binding("a", "load_adapter", "Add adapter"),
        Binding("z", "unload_adapter", "Remove adapter"),
        Binding("c", "copy", "Copy", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._engines: dict[str, str] = {}
        self._found_at = 0.0
        self._served: dict[str, Served] = {}
        self._maps: tuple[str, ...] = ()

    def body(self) -> ComposeResult:
        yield LiveTable(ENGINES, title="Engines", sort=0, id="engines")
        with Horizontal(id="figures"):
            with Vertical(id="curves"):
                yield SparklineRow("tokens/s", id="tokens")
                yield SparklineRow("first token", id="ttft")
                yield SparklineRow("next token", id="gap")
                yield SparklineRow("prompt hits", id="hits")
                yield Static(id="counts")
            yield VerticalScroll(id="maps")
        with TabbedContent(id="lists"):
            with TabPane("Requests", id="pane-requests"):
                yield LiveTable(REQUESTS, id="requests")
            with TabPane("Replicas", id="pane-replicas"):
                yield LiveTable(REPLICAS, id="replicas")
            with TabPane("Adapters", id="pane-adapters"):
                yield LiveTable(ADAPTERS, id="adapters")

    async def opened(self, session: Session) -> None:
        self._found_at = 0.0
        self.every(LOOK_EVERY_S, self._look)

    async def _look(self) -> None:
        client = self.session.client
        now = time.monotonic()
        if now - self._found_at >= FIND_EVERY_S:
            self._engines = await find_engines(client)
            self._found_at = now
        served = await ask_engines(client, self._engines)
        if any(one.stats is None for one in served):
            self._found_at = 0.0  # it ended, or is about to be there
        if not self.query("#engines"):
            return  # the app is ending, and took its widgets away
        self._served = {one.engine: one for one in served}
        self.query_one("#engines", LiveTable).show({one.engine: _engine(one) for one in served})
        await self._show_selected()

    async def on_live_table_chosen(self, event: LiveTable.Chosen) -> None:
        if event.table.id == "engines":
            await self._show_selected()

    @property
    def selected(self) -> Served | None:
        """The engine that keys act on."""
        return self._served.get(self.query_one("#engines", LiveTable).selected_key)

    async def _show_selected(self) -> None:
        served = self.selected
        stats = served.stats if served is not None else None
        detail = stats.detail if stats is not None and stats.detail is not None else EngineDetail(())
        self._show_curves(stats, detail)
        await self._show_maps(detail.lanes)
        self.query_one("#requests", LiveTable).show(_requests(detail.lanes))
        self.query_one("#replicas", LiveTable).show({lane.address: _replica(lane) for lane in detail.lanes})
        await self._show_adapters(served)

    async def _show_adapters(self, served: Served | None) -> None:
        adapters: tuple[AdapterInfo, ...] = ()
        if served is not None and served.stats is not None and served.stats.adapters:
            adapters = (await self.session.ask(served.scheduler, ListAdapters())).adapters
        self.query_one("#adapters", LiveTable).show(
            {one.name: (one.name, one.rank, one.num_bytes, one.path) for one in adapters}
        )

    def _show_curves(self, stats: EngineStats | None, detail: EngineDetail) -> None:
        seconds = detail.seconds
        rate = sum(second.tokens for second in seconds[-RECENT_S:]) / RECENT_S if seconds else 0.0
        ttft = mean_recent(seconds, "ttft_ms", "first_tokens")
        gap = mean_recent(seconds, "token_ms", "tokens")
        self.query_one("#tokens", SparklineRow).show([second.tokens for second in seconds], f"{short_rate(rate)}/s")
        self.query_one("#ttft", SparklineRow).show([second.ttft_ms for second in seconds], milliseconds(ttft))
        self.query_one("#gap", SparklineRow).show([second.token_ms for second in seconds], milliseconds(gap))
        hits = share(sum(s.cached_tokens for s in seconds), sum(s.prompt_tokens for s in seconds))
        self.query_one("#hits", SparklineRow).show(
            [share(second.cached_tokens, second.prompt_tokens) for second in seconds],
            f"{100 * hits:.0f}%" if any(second.prompt_tokens for second in seconds) else "-",
        )
        self.query_one("#counts", Static).update(_counts(stats))

    async def _show_maps(self, lanes: Sequence[LaneStats]) -> None:
        """A map for each replica; they are made anew only when replicas come or go."""
        addresses = tuple(lane.address for lane in lanes)
        holder = self.query_one("#maps", VerticalScroll)
        if addresses != self._maps:
            self._maps = addresses
            await holder.remove_children()
            await holder.mount_all(BlockMap() for _ in addresses)
        for widget, lane in zip(holder.query(BlockMap), lanes, strict=False):
            widget.show(lane.address, lane.cells, lane.blocks_per_cell)

    # What is done

    def action_load(self) -> None:
        self.run(self._load())

    async def _load(self) -> None:
        order = await ask_what_to_load(self, self._engines)
        if order is not None:
            doing = f"loading {order.model}"
            await self._carry_out(load_model(self.session.client, order), doing, f"{order.model} is served")

    def action_unload(self) -> None:
        if self.selected is not None:
            self.run(self._unload(self.selected))

    async def _unload(self, served: Served) -> None:
        stats = served.stats
        busy = (stats.running + stats.waiting) if stats is not None else 0
        detail = "Its model leaves the memory, and who asks for it hears that there is no such actor."
        if busy:
            detail += f" {busy} requests are under way: what does not end within ten seconds fails."
        if await self.app.push_screen_wait(Confirm(f"Unload {_model(served)}?", detail, yes="Unload")):
            stopping = self.session.client.stop(served.engine, STOP_TIMEOUT_S)
            await self._carry_out(stopping, f"unloading {served.engine}", f"{served.engine} has ended")

    def action_load_adapter(self) -> None:
        if self.selected is not None and self.selected.scheduler:
            self.run(self._load_adapter(self.selected))

    async def _load_adapter(self, served: Served) -> None:
        fields = [
            Field("path", "Folder", placeholder="of a PEFT adapter, on the engine's machine", needed=True),
            Field("name", "Name", placeholder="the folder's"),
            Field("replace", "If it is there", "no", [("no", "leave it alone"), ("yes", "replace it")]),
        ]
        values = await self.app.push_screen_wait(FieldsDialog("Load a LoRA adapter", fields, yes="Load"))
        if values is not None:
            name = values["name"] or values["path"].rstrip("/").rpartition("/")[2]
            request = LoadAdapter(name, values["path"], values["replace"] == "yes")
            asking = self.session.ask(served.scheduler, request, ADAPTER_TIMEOUT_S)
            await self._carry_out(asking, f"loading {name}", f"requests may name {name} now")

    def action_unload_adapter(self) -> None:
        if self.selected is not None and self.selected.stats is not None:
            self.run(self._unload_adapter(self.selected, self.selected.stats))

    async def _unload_adapter(self, served: Served, stats: EngineStats) -> None:
        if not stats.adapters:
            self.say("no adapter is loaded")
            return
        at = self.query_one("#adapters", LiveTable).selected_key
        name = await self.app.push_screen_wait(Choose("Remove which adapter?", stats.adapters, at))
        if name is None:
            return
        detail = "The requests that use it end first; new ones that name it fail. Its files stay."
        if await self.app.push_screen_wait(Confirm(f"Remove {name}?", detail, yes="Remove")):
            asking = self.session.ask(served.scheduler, UnloadAdapter(name), ADAPTER_TIMEOUT_S)
            await self._carry_out(asking, f"removing {name}", f"{name} is gone")

    async def _carry_out(self, what: Coroutine[object, object, object], doing: str, done: str) -> None:
        self.say(f"{doing} \u2026")
        await what
        self.say(done)
        self._found_at = 0.0
        await self._look()


def _model(served: Served) -> str:
    return served.stats.model if served.stats is not None else served.engine


def _engine(served: Served) -> tuple[str | int | float | None, ...]:
    stats = served.stats
    if stats is None:
        return (served.engine, "loading \u2026" if not served.scheduler else "no answer", *([None] * 7))
    seconds = stats.detail.seconds if stats.detail is not None else ()
    rate = sum(second.tokens for second in seconds[-RECENT_S:]) / RECENT_S
    held = share(stats.num_blocks - stats.free_blocks, stats.num_blocks)
    hits = share(stats.cached_tokens, stats.prompt_tokens)
    counts = (stats.running, stats.waiting, rate, held, hits, stats.finished)
    return (served.engine, stats.model, stats.dtype, *counts)


def _requests(lanes: Sequence[LaneStats]) -> dict[str, tuple[str | int | float | None, ...]]:
    found: dict[str, tuple[str | int | float | None, ...]] = {}
    for lane in lanes:
        for one in lane.under_way:
            state = "runs" if one.running and one.generated_tokens else "prompt" if one.running else "waits"
            sizes = (one.prompt_tokens, one.cached_tokens, f"{one.generated_tokens:,} of {one.max_tokens:,}")
            rest = (one.num_blocks, int(one.age_s), one.adapter, one.priority or None, lane.address)
            found[str(one.sequence_id)] = (one.sequence_id, state, one.client, *sizes, *rest)
    return found


def _replica(lane: LaneStats) -> tuple[str | int | float | None, ...]:
    info = lane.info
    blocks = f"{lane.num_blocks - lane.free_blocks:,} of {lane.num_blocks:,}"
    counts = (lane.running, lane.waiting, blocks)
    if info is None:
        return (lane.address, "away", "", "", *counts, None, None, "")
    sizes = (info.weight_bytes, info.cache_bytes, info.slower_because)
    return (lane.address, "here", info.device, info.kernels, *counts, *sizes)


def _counts(stats: EngineStats | None) -> Text:
    """What is told in numbers, a line each."""
    if stats is None:
        return Text("no engine: n loads a model", "dim")
    text = Text()
    guessed = share(stats.accepted_tokens, stats.drafted_tokens)
    for label, value in (
        ("requests", f"{stats.requests:,}, {stats.aborted:,} given up, {stats.refused:,} refused"),
        ("tokens", f"{stats.prompt_tokens:,} in ({stats.cached_tokens:,} cached), {stats.generated_tokens:,} out"),
        ("cache", f"{stats.pinned_blocks:,} blocks pinned, {stats.evictions:,} evicted"),
        ("sessions", f"{stats.sessions:,} kept; context {stats.context_length:,} tokens"),
        (
            "trouble",
            f"{stats.failed:,} failed, {stats.preemptions:,} preempted, {stats.replica_failures:,} replicas lost",
        ),
        ("guesses", f"{stats.drafted_tokens:,}, {100 * guessed:.0f}% right" if stats.drafted_tokens else ""),
    ):
        if value:
            text.append(f"{label:<10}", "dim")
            text.append(f"{value}\n")
    text.right_crop(1)
    return text
