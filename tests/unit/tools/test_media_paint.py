"""Text to image: a tiny Stable Diffusion with random weights, run as a real one is. Its pictures mean nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
from PIL import Image as PILImage

from callboard import Image, ToolContext
from callboard.actors.tools.errors import ToolError, ToolSetupFailed
from callboard.actors.tools.media.paint import Paint
from callboard.actors.tools.outcome import Outcome
from callboard.runtime.errors import Cancelled
from callboard.schemas.tool import ToolProgress

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return media_models.painter(tmp_path_factory.mktemp("painter") / "model")


@pytest.fixture(scope="module")
def brush(folder: Path) -> Paint:
    return Paint(str(folder))


def shown(outcome: Outcome, name: str) -> PILImage.Image:
    file = outcome.media[name]
    assert isinstance(file, Image)
    return file.pil()


async def painted(brush: Paint, **arguments: Any) -> np.ndarray:
    outcome = await brush.call({"prompt": "a red door", "steps": 2, **arguments})
    return np.asarray(shown(outcome, "painting.png"))


class Watcher:
    """Keeps what a call tells, and gives it up after so many steps."""

    def __init__(self, context: ToolContext, stop_after: int = 0) -> None:
        self.seen: list[ToolProgress] = []
        self._context = context
        self._stop_after = stop_after
        context.sink = self

    def progress(self, progress: ToolProgress) -> None:
        self.seen.append(progress)
        if len(self.seen) == self._stop_after:
            self._context.cancel()

    def piece(self, piece: Any) -> None: ...

    async def piece_soon(self, piece: Any) -> None: ...


async def test_a_seed_gives_the_same_picture_again_and_another_another(brush: Paint) -> None:
    first = await painted(brush, seed=7)
    assert first.shape == (16, 16, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, await painted(brush, seed=7))
    assert not np.array_equal(first, await painted(brush, seed=8))


async def test_without_a_seed_one_is_drawn_that_gives_the_picture_again(brush: Paint) -> None:
    outcome = await brush.call({"prompt": "a red door", "steps": 2})
    again = await painted(brush, seed=outcome.data["seed"])
    assert np.array_equal(np.asarray(shown(outcome, "painting.png")), again)
    seeds = {(await brush.call({"prompt": "a red door", "steps": 1})).data["seed"] for _ in range(3)}
    assert len(seeds) == 3


async def test_what_is_asked_for_is_what_the_pipeline_is_told(brush: Paint) -> None:
    plain = await painted(brush, seed=7)
    assert not np.array_equal(plain, await painted(brush, seed=7, prompt="a blue door"))
    assert not np.array_equal(plain, await painted(brush, seed=7, avoid="red"))
    assert not np.array_equal(plain, await painted(brush, seed=7, guidance=1.0))
    assert not np.array_equal(plain, await painted(brush, seed=7, steps=3))
    assert (await painted(brush, width=24, height=32)).shape == (32, 24, 3)


async def test_each_step_is_told(brush: Paint) -> None:
    context = ToolContext()
    watcher = Watcher(context)
    await brush.call({"prompt": "a red door", "steps": 4}, {}, context)
    assert [(progress.done, progress.total) for progress in watcher.seen] == [(n, 4.0) for n in (1, 2, 3, 4)]


async def test_a_call_that_is_given_up_ends_before_the_next_step_and_the_next_call_is_as_ever(brush: Paint) -> None:
    before = await painted(brush, seed=7)
    context = ToolContext()
    watcher = Watcher(context, stop_after=2)
    with pytest.raises(Cancelled):
        await brush.call({"prompt": "a red door", "steps": 50}, {}, context)
    assert len(watcher.seen) == 2
    assert np.array_equal(before, await painted(brush, seed=7))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "  "}, "empty"),
        ({"width": 20, "height": 20}, "divisible by 8"),
        ({"width": 4096, "height": 4096}, "too large"),
        ({"width": -8}, "width"),
        ({"steps": 0}, "steps"),
        ({"seed": 2**32}, "seed"),
        ({"model": "/etc"}, "model"),
    ],
)
async def test_what_cannot_be_painted_is_an_error(brush: Paint, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        await painted(brush, **arguments)


async def test_a_model_that_is_no_pipeline_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ToolSetupFailed, match=r"no model_index.json"):
        await Paint(str(media_models.detector(tmp_path / "detector"))).call({"prompt": "a door"})
    with pytest.raises(ToolSetupFailed, match="no model is set"):
        await Paint().call({"prompt": "a door"})


async def test_a_pipeline_that_takes_no_text_is_said_to_be_one(tmp_path: Path) -> None:
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(ToolSetupFailed, match="is DDPMPipeline, and the tool 'paint' needs"):
        await Paint(str(tmp_path / "ddpm")).call({"prompt": "a door"})


async def test_a_folder_whose_code_would_have_to_run_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "coded"))
    index = json.loads((copy / "model_index.json").read_text())
    touched = tmp_path / "touched"
    (copy / "mine.py").write_text(f"open({str(touched)!r}, 'w').close()\nclass Mine: ...\n")
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": ["mine", "Mine"]}))
    with pytest.raises(ToolSetupFailed, match="code of its own"):
        await Paint(str(copy)).call({"prompt": "a door"})
    (copy / "model_index.json").write_text(json.dumps({**index, "unet": ["mine", "Mine"]}))
    with pytest.raises(ToolSetupFailed, match="cannot be loaded"):
        await Paint(str(copy)).call({"prompt": "a door"})
    assert not touched.exists()


async def test_a_damaged_part_is_an_error(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "damaged"))
    (weights,) = (copy / "unet").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ToolSetupFailed, match="cannot be loaded as StableDiffusionPipeline"):
        await Paint(str(copy)).call({"prompt": "a door"})
