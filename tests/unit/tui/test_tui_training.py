"""The training page on real jobs: started from its form, watched, drawn over each other, paused and gone on with."""

from __future__ import annotations

import importlib
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from textual.widgets import Input, Static, TabbedContent
from tui_support import Daemon, Eventually, OpenApp, Picture, Running

from callboard.runtime.plot_terminal import BLANK
from callboard.schemas.train import (
    AskTraining,
    BatchSettings,
    ComputeSettings,
    EvaluationSettings,
    FollowTraining,
    JobState,
    OptimizerSettings,
    RunTraining,
    SampleSettings,
    TrainConfig,
    TrainJob,
)
from callboard.tui.screens.train_form import TrainForm
from callboard.tui.screens.training import TrainingPage
from callboard.tui.widgets.confirm import Confirm
from callboard.tui.widgets.curves import Curves
from callboard.tui.widgets.live_table import LiveTable
from callboard.tui.widgets.schema_form import SchemaForm

# Its two runs train for real.
pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
    return importlib.import_module("tiny_models").write_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(3)
    words = ["red", "blue", "old", "new", "tree", "stone", "river"]
    records = [{"instruction": " ".join(rng.choices(words, k=5)), "output": " ".join(rng.choices(words, k=5))}
               for _ in range(40)]  # fmt: skip
    path = tmp_path_factory.mktemp("data") / "chats.json"
    path.write_text(json.dumps(records))
    return path


def config(tiny: Path, chats: Path, out: Path, **changes: Any) -> TrainConfig:
    wanted: dict[str, Any] = {
        "model": str(tiny),
        "data": str(chats),
        "out": str(out),
        "steps": 12,
        "batch": BatchSettings(samples=8, max_tokens=128, micro_tokens=256),
        "optimizer": OptimizerSettings(lr=5e-3, warmup=2),
        "compute": ComputeSettings(precision="float32", device="cpu", threads=1),
        "samples": SampleSettings(prompts=("red tree",), every=6, max_tokens=8),
        "evaluation": EvaluationSettings(share=0.2, every=4),
    }
    return TrainConfig(**{**wanted, **changes})


@pytest.fixture(scope="module")
def trained(daemon: Daemon, tiny: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two finished jobs; gives the folder that their results lie in."""
    out, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("jobs")

    async def both() -> None:
        async with daemon.connect() as bus:
            await bus.spawn("train.jobs", json.dumps({"folder": str(folder)}), name="train")
            jobs = bus.actor("train")
            for name, lr in (("gentle", 1e-3), ("bold", 2e-2)):
                changed = config(tiny, chats, out / name, optimizer=OptimizerSettings(lr=lr, warmup=2))
                await jobs.ask(RunTraining(changed, name))
                job = await jobs.ask(FollowTraining(name), timeout=100)
                assert job.state is JobState.FINISHED, job.error

    anyio.run(both)
    return str(out)


def table(it: Running) -> LiveTable:
    return it.page.query_one("#jobs", LiveTable)


def cell(it: Running, job: str, title: str) -> str:
    """What a column says of a job."""
    number = next(number for number, column in enumerate(table(it).columns_shown) if column.title == title)
    return str(table(it).rows_shown[job][number])


async def settled(it: Running, eventually: Eventually, *jobs: str) -> None:
    """The chosen jobs are there with all of their steps, and drawn."""
    page = it.page
    await eventually(lambda: all(job in page.views and page.views[job].curves.last_step == 12 for job in jobs))
    curves = page.query_one(Curves)
    await eventually(lambda: [run.job for run in curves.runs] == list(jobs))
    await it.pilot.pause()
    await eventually(lambda: "loss (dots" in it.screen_text() and it.screen_text().count(f"━ {jobs[-1]}") == 2)


async def test_jobs_are_listed_and_the_chosen_one_is_drawn(
    trained: str, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("training") as it:
        await settled(it, eventually, "bold")
        text = it.screen_text()
        assert "12/12" in text
        assert "100%" in text
        assert "finished" in text
        for title in ("loss (dots: held out)", "learning rate", "gradient norm", "tokens/s"):
            assert title in text
        assert sum(ord(character) > BLANK for character in text if ord(character) < BLANK + 256) > 50


async def test_runs_lie_over_each_other_and_curves_are_looked_at_closely(
    trained: str, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("training") as it:
        await settled(it, eventually, "bold")
        table(it).select("gentle")
        await it.pilot.press("space")
        table(it).select("bold")
        await settled(it, eventually, "bold", "gentle")
        curves = it.page.query_one(Curves)
        curves.focus()
        await it.pilot.press("m", "l", "plus")
        assert (curves.metric, curves.log_scale, curves.window) == ("loss", True, (6.0, 12.0))
        await it.pilot.pause()
        text = it.screen_text()
        assert "log" in text
        assert "steps 6 to 12" in text
        assert "learning rate" not in text
        await it.pilot.press("left")
        assert curves.window == (4.5, 10.5)
        await it.pilot.press("0", "o")
        assert (curves.window, curves.smoothing) == (None, 0.9)


async def test_samples_and_events_of_a_run_are_read(trained: str, open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("training") as it:
        await settled(it, eventually, "bold")
        it.page.query_one(TabbedContent).active = "tab-samples"
        await eventually(lambda: "step 12" in it.screen_text() and "red tree" in it.screen_text())
        await it.pilot.press("c")
        assert it.app.clipboard.startswith("step 12\nred tree")
        it.page.query_one(TabbedContent).active = "tab-events"
        await eventually(lambda: "checkpoint" in it.screen_text() and str(trained)[:30] in it.screen_text())
        await it.pilot.press("c")
        assert str(trained) in it.app.clipboard


async def test_data_is_looked_at_while_the_form_is_filled(
    trained: str, tiny: Path, chats: Path, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("training") as it:
        await it.pilot.press("n")
        await eventually(lambda: isinstance(it.app.screen, TrainForm))
        form = it.app.screen.query_one(SchemaForm)
        form.set_text("model", str(tiny))
        form.set_text("data", str(chats))
        await eventually(lambda: "40 records" in str(it.app.screen.query_one("#check-text", Static).content))
        form.set_text("data", str(chats) + "x")
        await eventually(lambda: "is not there" in str(it.app.screen.query_one("#check-text", Static).content))
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "out: it must not be empty" in str(it.app.screen.query_one("#wrong", Static).content))
        assert isinstance(it.app.focused, Input)
        await it.pilot.press("escape")
        assert it.app.screen is it.page


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_looks_as_it_did(
    trained: str,
    open_app: OpenApp,
    eventually: Eventually,
    picture: Picture,
    monkeypatch: pytest.MonkeyPatch,
    size: tuple[int, int],
) -> None:
    row = TrainingPage._row

    def shown(self: TrainingPage, job: TrainJob, place: int | None) -> Any:
        return row(self, msgspec.structs.replace(job, model="/models/tiny-llama"), place)  # not where tests keep theirs

    monkeypatch.setattr(TrainingPage, "_row", shown)
    async with open_app("training", size=size) as it:
        await settled(it, eventually, "bold")
        it.page.query_one(Curves).metric = "loss"  # how fast it went is another each time
        await eventually(lambda: "learning rate" not in it.screen_text())
        await picture(it.app, "training")


async def test_the_smallest_terminal_shows_the_jobs(trained: str, open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("training", size=(20, 5)) as it:
        await eventually(lambda: "bold" in it.screen_text())


async def test_a_run_is_started_paused_and_gone_on_with(
    trained: str, daemon: Daemon, tiny: Path, chats: Path, open_app: OpenApp, eventually: Eventually, tmp_path: Path
) -> None:
    async with open_app("training") as it, daemon.connect() as bus:
        await it.pilot.press("n")
        await eventually(lambda: isinstance(it.app.screen, TrainForm))
        form = it.app.screen.query_one(SchemaForm)
        for name, text in {
            "model": str(tiny), "data": str(chats), "out": str(tmp_path / "out"), "job": "mine", "steps": "4000",
            "more": '[compute]\nprecision = "float32"\ndevice = "cpu"\nthreads = 1',
        }.items():  # fmt: skip
            form.set_text(name, text)
        await it.pilot.press("ctrl+s")
        page = it.page
        await eventually(lambda: "mine" in page.jobs and table(it).selected_key == "mine")
        await eventually(lambda: "mine" in page.views and page.views["mine"].curves.last_step > 3)
        await eventually(lambda: bool(re.fullmatch(r"\d+ (s|min.*|h.*)", cell(it, "mine", "left"))))  # to step 4,000
        await it.pilot.press("p")
        await eventually(lambda: page.jobs["mine"].state is JobState.PAUSED)
        await eventually(lambda: cell(it, "mine", "left") == "")
        paused = page.jobs["mine"].step
        await it.pilot.press("r")
        await eventually(lambda: page.views["mine"].curves.last_step > paused)
        await it.pilot.press("x")
        await eventually(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("y")
        await eventually(lambda: page.jobs["mine"].state is JobState.CANCELLED)
        assert (await bus.actor("train").ask(AskTraining("mine"))).state is JobState.CANCELLED
