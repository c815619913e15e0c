"""Media tools in a company: processes of their own, values as blobs, models from the settings, the command line."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from board import Board, running

import callboard
from callboard import Audio, Image
from callboard.actors.tools.client import open_tool
from callboard.actors.tools.errors import ToolError, ToolSetupFailed
from callboard.runtime.client import Client
from callboard.schemas.tool import ToolProgress

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "tools"))

import media_models  # pyright: ignore[reportMissingImports]  # of the unit tests

pytestmark = [
    pytest.mark.slow,
    pytest.mark.anyio,
    pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng (Debian: espeak-ng)"),
]

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("media")
    settings = base / "config" / "callboard" / "config.toml"
    settings.parent.mkdir(parents=True)
    painter, detector = media_models.painter(base / "painter"), media_models.detector(base / "detector")
    settings.write_text(
        f'[tools.paint]\nmodel = "{painter}"\ndevice = "cpu"\n[tools.detect]\nmodel = "{detector}"\n'
        f'[tools.segment]\nmodel = "{detector}"\n'
    )
    with running(base, XDG_CONFIG_HOME=str(base / "config"), OMP_NUM_THREADS="1") as board:
        yield board


@pytest.fixture
async def bus(daemon: Board, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Client]:
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    async with callboard.connect() as bus:
        yield bus


def page() -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", (760, 740), "white")
    draw = PIL.ImageDraw.Draw(picture)
    draw.text((40, 60), "Ship to: 12 Harbour Road", fill="black", font=PIL.ImageFont.load_default(size=36))
    return picture


async def test_what_one_process_says_another_hears(bus: Client) -> None:
    async with open_tool(bus, "speak") as speak, open_tool(bus, "transcribe") as transcribe:
        spoken = await speak.call(text="one two three", voice="en-us", words_per_minute=130)
        assert isinstance(spoken["audio"], Audio)
        heard = await transcribe.call(audio=spoken["audio"], words=DIGITS)
        assert heard["text"] == "one two three"
        with pytest.raises(ToolError, match="qwrtzpf"):
            await transcribe.call(audio=spoken["audio"], words=["qwrtzpf"])


def test_the_command_line_speaks_into_a_file_and_reads_a_picture(daemon: Board, tmp_path: Path) -> None:
    wav, scan, marked = tmp_path / "said.wav", tmp_path / "scan.png", tmp_path / "marked.png"
    done = daemon.run("tool", "call", "speak", "text=nine zero five", "-o", str(wav))
    assert done.returncode == 0, done.stderr
    assert wav.read_bytes()[:4] == b"RIFF"
    page().save(scan)
    done = daemon.run("tool", "call", "ocr", f"image=@{scan}", "marked=true", "-o", str(marked), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"]["text"] == "Ship to: 12 Harbour Road"
    with PIL.Image.open(marked) as picture:
        assert picture.size == (760, 740)
    broken = tmp_path / "broken.png"
    broken.write_bytes(scan.read_bytes()[:300])
    done = daemon.run("tool", "call", "ocr", f"image=@{broken}")
    assert done.returncode == 1
    assert "damaged" in done.stderr


@pytest.mark.slow  # its process imports diffusers
@pytest.mark.timeout(180)
async def test_a_painting_is_told_step_by_step_and_can_be_given_up(bus: Client) -> None:
    async with open_tool(bus, "paint") as paint:
        seen: list[ToolProgress] = []
        first = await paint.request({"prompt": "a door", "steps": 3, "seed": 5}, on_progress=seen.append)
        steps = [progress.done for progress in seen]  # the last word may stand for those before it
        assert steps == sorted(set(steps))
        assert (seen[-1].done, seen[-1].total) == (3.0, 3.0)

        began = anyio.Event()
        async with anyio.create_task_group() as group:

            async def long() -> None:
                arguments = {"prompt": "a door", "steps": 500, "width": 256, "height": 256}
                await paint.request(arguments, on_progress=lambda _: began.set())

            group.start_soon(long)
            await began.wait()
            group.cancel_scope.cancel()
        # One call at a time: this one is not answered before the other has ended.
        again = await paint.request({"prompt": "a door", "steps": 3, "seed": 5})
        pictures = [outcome.data["image"].array() for outcome in (first, again)]
        assert np.array_equal(*pictures)


@pytest.mark.slow  # three processes that import torch
@pytest.mark.timeout(180)
async def test_models_come_from_the_settings_and_wrong_ones_are_said_to_be_wrong(bus: Client) -> None:
    async with open_tool(bus, "detect") as detect, open_tool(bus, "segment") as segment:
        found = await detect.call(image=page(), min_score=0.0, marked=True)
        assert {thing["label"] for thing in found["objects"]} <= {"cat", "hat"}
        assert isinstance(found["marked"], Image)
        with pytest.raises(ToolSetupFailed, match="is YolosForObjectDetection, and the tool 'segment' needs"):
            await segment.call(image=page())
    async with open_tool(bus, "translate") as translate:
        with pytest.raises(ToolSetupFailed, match="no model is set") as caught:
            await translate.call(text="hello", target="de")
        assert "[tools.translate]" in caught.value.hint
