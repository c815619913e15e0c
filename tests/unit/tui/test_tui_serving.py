"""The page of serving, with the small model served: what runs and waits, the cache as a map, load and unload."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import numpy as np
import pytest
from safetensors.numpy import save_file
from textual.widgets import Input, TabbedContent
from tui_support import Daemon, Eventually, OpenApp, Picture, Running

from callboard.runtime.errors import CallboardError
from callboard.schemas.serve import DescribeModel, Generate
from callboard.schemas.serve_stats import EngineDetail, EngineStats, LaneStats, ServedSecond, UnderWay
from callboard.schemas.serve_steps import ReplicaInfo
from callboard.tui.screens import serving as page
from callboard.tui.serving_figures import Served
from callboard.tui.widgets.block_map import SIGNS, BlockMap, shrunk
from callboard.tui.widgets.chat_line import BAR
from callboard.tui.widgets.live_table import LiveTable

pytestmark = pytest.mark.anyio

CONFIG = {"model": "smollm2", "num_blocks": 512, "threads": 1, "max_running": 2}
SCHEDULER = "engine.scheduler"


@pytest.fixture(scope="module")
def engine(daemon: Daemon) -> Daemon:
    """The daemon of this module with the small model served."""
    pulled = daemon.run("pull", "smollm2")
    assert pulled.returncode == 0, pulled.stderr
    done = daemon.run("spawn", "serve.engine", "--name", "engine", "--process", "--config", json.dumps(CONFIG))
    assert done.returncode == 0, done.stderr
    return daemon


def table(it: Running, name: str) -> LiveTable:
    return it.page.query_one(f"#{name}", LiveTable)


def test_a_map_with_too_little_room_shows_the_highest_of_each_stretch() -> None:
    cells = bytes([0, 0, 1, 0, 2, 0, 9, 0])
    assert shrunk(cells, 8) == ([0, 0, 1, 0, 2, 0, len(SIGNS) - 1, 0], 1)
    assert shrunk(cells, 4) == ([0, 1, 2, len(SIGNS) - 1], 2)
    assert shrunk(cells, 3) == ([1, 2, len(SIGNS) - 1], 3)
    assert shrunk(b"", 10) == ([], 1)


async def test_what_runs_and_waits_is_there_with_the_blocks_that_it_holds(
    open_app: OpenApp, engine: Daemon, eventually: Eventually
) -> None:
    async with engine.connect() as bus, open_app("serving", size=(120, 40)) as it:
        await eventually(lambda: "engine" in table(it, "engines").rows_shown)
        long = Generate(prompt="Once upon a time", max_tokens=400, ignore_eos=True, client="reader")
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(lambda: bus.actor(SCHEDULER).ask(long, 120))
            states = [column.title for column in table(it, "requests").columns_shown].index("state")
            await eventually(
                lambda: (
                    sorted(str(row[states]) for row in table(it, "requests").rows_shown.values())
                    == ["runs", "runs", "waits"]
                )
            )
            await eventually(lambda: "reader" in it.screen_text() and "of 400" in it.screen_text())
            blocks = it.page.query_one(BlockMap)
            await eventually(lambda: any(cell > 1 for cell in blocks._cells))
            assert len(blocks._cells) == 512
            await eventually(lambda: SIGNS[2] in it.screen_text())
            group.cancel_scope.cancel()
        await eventually(lambda: not table(it, "requests").rows_shown)
        # Who looks now sees what went before: the curves are the engine's, not the page's.
        row = dict(
            zip(
                [c.title for c in table(it, "engines").columns_shown],
                table(it, "engines").rows_shown["engine"],
                strict=True,
            )
        )
        assert row["model"] == "smollm2"
        await eventually(lambda: "first token" in it.screen_text() and "ms" in it.screen_text())


async def test_the_page_of_chats_shows_how_full_the_context_is(
    open_app: OpenApp, engine: Daemon, eventually: Eventually
) -> None:
    async with engine.connect() as bus, open_app("chat") as it:
        described = await bus.actor(SCHEDULER).ask(DescribeModel())
        await eventually(lambda: f"{'░' * BAR} 0 of {described.context_length:,} tokens" in it.screen_text())
        it.page.conversation.options = msgspec.structs.replace(it.page.conversation.options, max_tokens=2)
        it.page.prompt.text = "Tell me a story. " * (described.context_length // BAR // 5)  # of five tokens each
        await it.pilot.press("enter")
        await eventually(lambda: any(turn.prompt_tokens for turn in it.page.conversation.path()))
        last = it.page.conversation.path()[-1]
        used = last.prompt_tokens + last.completion_tokens
        line = f"█{'░' * (BAR - 1)} {used:,} of {described.context_length:,} tokens"
        await eventually(lambda: line in it.screen_text())


async def test_an_adapter_that_is_none_is_said_and_nothing_is_unloaded_unasked(
    open_app: OpenApp, engine: Daemon, eventually: Eventually, tmp_path: Path
) -> None:
    async with engine.connect() as bus, open_app("serving", size=(80, 24)) as it:
        await eventually(lambda: "engine" in table(it, "engines").rows_shown)
        await it.pilot.press("c")
        assert it.app.clipboard.split("\t")[:2] == ["engine", "smollm2"]
        await it.pilot.press("a")
        await eventually(lambda: "Load a LoRA adapter" in it.screen_text())
        it.app.screen.query_one("#field-path", Input).value = str(tmp_path)
        await it.pilot.press("ctrl+s")
        await eventually(
            lambda: "adapter_config.json" in it.screen_text() or "adapter" in it.page.query_one("StatusLine").text
        )
        await it.pilot.press("z")
        await eventually(lambda: it.page.query_one("StatusLine").text == "no adapter is loaded")
        await it.pilot.press("x")
        await eventually(lambda: "Unload smollm2?" in it.screen_text())
        await it.pilot.press("enter")
        await eventually(lambda: "Unload smollm2?" not in it.screen_text())
        assert [info.address for info in await bus.actors("engine")]


# Of the small model: layers, heads of a query, their size, hidden states.
LAYERS, HEADS, HEAD_DIM, HIDDEN = 30, 9, 64, 576
RANK = 4


def write_adapter(folder: Path) -> Path:
    """A LoRA adapter in PEFT's format for the queries of the small model, with numbers that change what it says."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 4 * RANK, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)
    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = random.normal(0, 0.5, (RANK, HIDDEN)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = random.normal(0, 0.5, (HEADS * HEAD_DIM, RANK)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


async def test_an_adapter_is_loaded_shown_used_and_removed_from_the_page(
    open_app: OpenApp, engine: Daemon, eventually: Eventually, tmp_path: Path
) -> None:
    folder = await anyio.to_thread.run_sync(write_adapter, tmp_path / "pirate")
    ask = Generate(prompt="Once upon a time", max_tokens=12, temperature=0.0, ignore_eos=True)
    async with engine.connect() as bus, open_app("serving", size=(120, 40)) as it:
        scheduler = bus.actor(SCHEDULER)
        await eventually(lambda: "engine" in table(it, "engines").rows_shown)
        plain = (await scheduler.ask(ask, 60)).text
        await it.pilot.press("a")
        await eventually(lambda: "Load a LoRA adapter" in it.screen_text())
        it.app.screen.query_one("#field-path", Input).value = str(folder)
        await it.pilot.press("ctrl+s")
        await eventually(lambda: it.page.query_one("StatusLine").text == "requests may name pirate now")
        await eventually(lambda: "pirate" in table(it, "adapters").rows_shown)
        name, rank, size, path = table(it, "adapters").rows_shown["pirate"]
        assert (name, rank, path) == ("pirate", RANK, str(folder))
        assert isinstance(size, int)
        assert size > 0
        it.page.query_one("#lists", TabbedContent).active = "pane-adapters"
        await eventually(lambda: str(folder)[:20] in it.screen_text())
        assert (await scheduler.ask(msgspec.structs.replace(ask, adapter="pirate"), 60)).text != plain
        # The same again is refused, with what to do, unless it is to be replaced.
        await it.pilot.press("a")
        await eventually(lambda: "Load a LoRA adapter" in it.screen_text())
        it.app.screen.query_one("#field-path", Input).value = str(folder)
        await it.pilot.press("ctrl+s")
        await eventually(
            lambda: "pirate" in it.page.query_one("StatusLine").text and it.page.query_one("StatusLine").is_error
        )
        for key, stays in (("n", True), ("y", False)):
            await it.pilot.press("z")
            await eventually(lambda: "Remove which adapter?" in it.screen_text())
            await it.pilot.press("enter")
            await eventually(lambda: "Remove pirate?" in it.screen_text())
            await it.pilot.press(key)
            await eventually(lambda: "Remove pirate?" not in it.screen_text())
            assert not stays or "pirate" in table(it, "adapters").rows_shown
        await eventually(lambda: not table(it, "adapters").rows_shown)
        with pytest.raises(CallboardError):
            await scheduler.ask(msgspec.structs.replace(ask, adapter="pirate"), 60)
        assert (await scheduler.ask(ask, 60)).text == plain


async def test_replicas_are_listed_with_what_computes_them(
    open_app: OpenApp, engine: Daemon, eventually: Eventually
) -> None:
    async with open_app("serving", size=(120, 40)) as it:
        await eventually(lambda: bool(table(it, "replicas").rows_shown))
        ((address, row),) = table(it, "replicas").rows_shown.items()
        assert address == "engine.replica"
        assert row[1:3] == ("here", "cpu")
        assert isinstance(row[7], int)
        assert row[7] > 50_000_000


@pytest.mark.parametrize("size", [(20, 5), (40, 12)])
async def test_small_terminals_show_what_they_can(
    open_app: OpenApp, engine: Daemon, eventually: Eventually, size: tuple[int, int]
) -> None:
    async with open_app("serving", size=size) as it:
        await eventually(lambda: "engine" in table(it, "engines").rows_shown)
        for key in ("n", "escape", "x", "escape", "a", "escape"):
            await it.pilot.press(key)
        assert it.screen_text()


def replica() -> ReplicaInfo:
    return ReplicaInfo(life="1", num_blocks=96, block_size=16, dtype="int4", kernels="native", weight_bytes=90_000_000,
                       cache_bytes=70_000_000)  # fmt: skip


def under_way(number: int, *, running: bool, generated: int = 0) -> UnderWay:
    return UnderWay(sequence_id=number, running=running, prompt_tokens=37 * number, generated_tokens=generated,
                    max_tokens=512, cached_tokens=32 if running else 0, num_blocks=generated // 16,
                    age_s=generated / 30,
                    client=("web", "agent.7", "")[number % 3])  # fmt: skip


LANE = LaneStats(
    address="engine.replica", info=replica(), running=3, waiting=2, num_blocks=96, free_blocks=50,
    cells=bytes([3] * 6 + [2] * 40 + [1] * 14 + [0] * 36),
    under_way=tuple(under_way(n, running=n < 4, generated=(120, 64, 16, 0, 0)[n - 1]) for n in range(1, 6)),
)  # fmt: skip
STATS = EngineStats(
    **dict.fromkeys(("aborted", "failed", "steps", "step_seconds", "compute_seconds", "replica_failures"), 0),
    model="smollm2", dtype="int4", running=3, waiting=2, num_blocks=96, free_blocks=50, block_size=16,
    context_length=8192, requests=1234, finished=1229, preemptions=2, prompt_tokens=45_678, generated_tokens=98_765,
    cached_tokens=30_000, sessions=4, evictions=77, pinned_blocks=12,
    detail=EngineDetail(
        (LANE,),
        tuple(ServedSecond(tokens=60 + n % 17 * 3, first_tokens=1, ttft_ms=80 + n % 23 * 4, token_ms=14 + n % 7,
                           prompt_tokens=100, cached_tokens=n % 5 * 20) for n in range(120)),
    ),
)  # fmt: skip


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_looks_as_it_did(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually, picture: Picture, monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
) -> None:  # fmt: skip
    """With what an engine might say, for no two runs of one are alike."""

    async def find(client: object) -> dict[str, str]:
        return {"engine": SCHEDULER}

    async def ask(client: object, engines: object) -> list[Served]:
        return [Served("engine", SCHEDULER, STATS)]

    monkeypatch.setattr(page, "find_engines", find)
    monkeypatch.setattr(page, "ask_engines", ask)
    async with open_app("serving", size=size) as it:
        await eventually(lambda: bool(table(it, "requests").rows_shown) and bool(it.page.query(BlockMap)))
        await eventually(lambda: "smollm2" in it.screen_text())
        await it.pilot.pause()
        await picture(it.app, "serving")


@pytest.mark.slow
async def test_a_model_is_loaded_and_unloaded_from_the_page(
    open_app: OpenApp, engine: Daemon, eventually: Eventually
) -> None:
    async with engine.connect() as bus, open_app("serving", size=(80, 24)) as it:
        await eventually(lambda: "engine" in table(it, "engines").rows_shown)
        await it.pilot.press("n")
        await eventually(lambda: "Load a model" in it.screen_text())
        assert "engine-2" in it.screen_text()
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "engine-2" in table(it, "engines").rows_shown)
        await eventually(lambda: it.page._served["engine-2"].stats is not None)
        table(it, "engines").select("engine-2")
        await eventually(lambda: it.page.selected.engine == "engine-2")
        await it.pilot.press("x")
        await eventually(lambda: "Unload smollm2?" in it.screen_text())
        await it.pilot.press("y")
        await eventually(lambda: "engine-2" not in table(it, "engines").rows_shown)
        assert not await bus.actors("engine-2")
        # A model that there is not: what is wrong, and nothing is left of it.
        await it.pilot.press("n")
        await eventually(lambda: "Load a model" in it.screen_text())
        field = it.app.screen.query_one("#field-model", Input)
        field.value = "nobody"
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "'nobody' is not in the store" in it.page.query_one("StatusLine").text)
