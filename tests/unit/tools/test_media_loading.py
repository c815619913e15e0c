"""Tools with models: how a model is found, loaded, refused and let go, and what every such tool does alike."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from media_calls import picture, run, tone

from callboard import Audio, Image, ToolContext
from callboard.actors.models.store import MANIFEST, ModelStore
from callboard.actors.tools.errors import ToolSetupFailed
from callboard.actors.tools.load import load_tools
from callboard.actors.tools.media.detect import Detect
from callboard.actors.tools.media.look import AskImage, DescribeImage
from callboard.actors.tools.media.model_tool import ModelTool
from callboard.actors.tools.media.segment import Segment
from callboard.actors.tools.media.speak import Speak
from callboard.actors.tools.media.transcribe import Transcribe
from callboard.actors.tools.media.translate import Translate
from callboard.runtime.errors import Cancelled, ConfigError, MissingExtra
from callboard.schemas.models import InstalledModel, ModelFile

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.mark.parametrize(
    ("tool", "name", "purpose"),
    [
        (Detect, "segmenter", "object detection"),
        (Segment, "detector", "segmentation"),
        (DescribeImage, "picker", "image description"),
        (AskImage, "listener", "questions about images"),
        (Transcribe, "captioner", "speech recognition"),
        (Speak, "spelling_listener", "text to speech"),
        (Translate, "detector", "translation"),
    ],
)
async def test_a_model_of_another_kind_is_said_to_be_one(
    model: Callable[..., str], tool: type[ModelTool], name: str, purpose: str
) -> None:
    holds = json.loads((Path(model(name)) / "config.json").read_text())["architectures"][0]
    with pytest.raises(ToolSetupFailed, match=rf"is {holds}, and the tool '\w+' needs one for .*{purpose}") as caught:
        await tool(model(name)).once.wait(ToolContext().in_thread)
    assert "is one; the families are" in caught.value.hint


async def test_weights_that_are_not_there_are_no_random_numbers(model: Callable[..., str], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model("detector"), tmp_path / "cut"))
    weights = load_file(folder / "model.safetensors")
    lost = sorted(name for name in weights if "bbox_predictor" in name)
    save_file({n: w for n, w in weights.items() if n not in lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ToolSetupFailed, match=f"{len(lost)} tensors are missing, among them '{lost[0]}'"):
        await run(Detect(str(folder)), image="it")


async def test_a_damaged_model_is_an_error(model: Callable[..., str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("detector"), tmp_path / "short"))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ToolSetupFailed, match="cannot be loaded"):
        await run(Detect(str(folder)), image="it")
    (folder / "config.json").write_text("{")
    with pytest.raises(ToolSetupFailed, match="damaged"):
        await run(Detect(str(folder)), image="it")


async def test_weights_that_could_run_code_are_not_opened(model: Callable[..., str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("detector"), tmp_path / "pickle"))
    (folder / "model.safetensors").unlink()
    touched = tmp_path / "touched"

    class Bad:
        def __reduce__(self) -> Any:
            return touched.write_text, ("",)

    torch.save(Bad(), folder / "pytorch_model.bin")
    with pytest.raises(ToolSetupFailed, match="cannot be loaded"):
        await run(Detect(str(folder)), image="it")
    assert not touched.exists()


async def test_a_part_that_is_not_there_is_an_error(model: Callable[..., str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("detector"), tmp_path / "part"))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ToolSetupFailed, match="ImageProcessor cannot be read"):
        await run(Detect(str(folder)), image="it")


async def test_a_model_of_the_store_is_found_by_its_name(model: Callable[..., str]) -> None:
    store = ModelStore()
    with pytest.raises(ToolSetupFailed, match="not in the store") as caught:
        await run(Detect("hf:some/detector"), image="it")
    assert "callboard pull hf:some/detector" in caught.value.hint
    folder = store.folder("hf:some/detector")
    shutil.copytree(model("detector"), folder)
    files = tuple(ModelFile(path.name, path.stat().st_size, "") for path in sorted(folder.iterdir()))
    manifest = InstalledModel("hf:some/detector", "", "", "a test", files)
    (folder / MANIFEST).write_bytes(msgspec.json.encode(manifest))
    assert (await run(Detect("hf:some/detector"), image="it", min_score=0.0))["objects"]


async def test_without_a_model_the_error_says_what_to_set() -> None:
    with pytest.raises(ToolSetupFailed, match="no model is set for the tool 'detect'") as caught:
        await run(Detect(), image="it")
    assert "[tools.detect]" in caught.value.hint
    with pytest.raises(ToolSetupFailed, match="is not there"):
        await run(Detect("/no/where"), image="it")


async def test_a_device_that_is_not_there_is_an_error(model: Callable[..., str]) -> None:
    missing = "cuda:9" if torch.cuda.is_available() else "cuda"
    with pytest.raises(ConfigError):
        await run(Detect(model("detector"), missing), image="it")


async def test_what_is_not_installed_is_an_error_that_names_the_extra(
    model: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from callboard.actors.tools.media.ocr import Ocr

    detector = model("detector")
    for module in ("rapidocr", "pocketsphinx", "transformers", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match="'ocr' needs the extra 'media'"):
        await Ocr().call({"image": "it"}, {"it": Image.from_pil(picture())})
    with pytest.raises(MissingExtra, match="'transcribe' needs the extra 'media'"):
        await Transcribe().call({"audio": "a"}, {"a": Audio.from_array(tone(16000), 16000)})
    with pytest.raises(MissingExtra, match="'detect' needs the extra"):
        await run(Detect(detector), image="it")


async def test_a_closed_tool_lets_its_model_go_and_the_next_call_loads_it_again(model: Callable[..., str]) -> None:
    tool = Detect(model("detector"))
    before = await run(tool, image="it", min_score=0.0)
    alive = weakref.ref(tool.loaded.model)
    await tool.once.close(ToolContext().in_thread)
    assert alive() is None
    assert await run(tool, image="it", min_score=0.0) == before


class FallingSilent(ToolContext):
    """A call that is given up once the tool has looked so many times."""

    looks = 0
    after = 4

    @property
    def cancelled(self) -> bool:
        self.looks += 1
        if self.looks >= self.after:
            self.cancel()
        return super().cancelled


async def test_generation_ends_at_the_token_at_which_the_call_is_given_up(model: Callable[..., str]) -> None:
    context = FallingSilent()
    with pytest.raises(Cancelled):
        await AskImage(model("converser")).call(
            {"image": "it", "question": "?", "max_tokens": 4096}, {"it": Image.from_pil(picture())}, context
        )
    assert context.looks == context.after


async def test_a_set_takes_its_model_from_its_options(model: Callable[..., str]) -> None:
    (tool,), alone = load_tools("detect", json.dumps({"model": model("detector"), "device": "cpu"}))
    assert alone
    assert isinstance(tool, Detect)
    assert (await run(tool, image="it", min_score=0.0))["objects"]
    with pytest.raises(ConfigError, match="modle"):
        load_tools("detect", '{"modle": "x"}')


async def test_a_class_of_ones_own_is_a_second_tool_with_another_model(model: Callable[..., str]) -> None:
    class StreetDetector(Detect, name="street_detector"):
        def __init__(self) -> None:
            super().__init__(model("detector"), device="cpu")

    tool = StreetDetector()
    assert (tool.info.name, tool.info.input_schema) == ("street_detector", Detect().info.input_schema)
    assert (await run(tool, image="it", min_score=0.0))["objects"]
    Empty = type("Empty", (Detect,), {}, name="other")
    with pytest.raises(ToolSetupFailed, match="the tool 'other'"):
        await run(Empty(), image="it")


def test_describing_the_tools_loads_nothing_heavy() -> None:
    """`callboard tool list` reads what they are; what they work with is for their own processes."""
    script = """
import json, sys
from callboard.actors.tools.load import load_tools
names = ["ask_image", "describe_image", "detect", "ocr", "paint", "segment", "speak", "transcribe", "translate"]
print([load_tools(name)[0][0].info.name for name in names] == names)
print(sorted({"torch", "transformers", "diffusers", "numpy", "PIL", "rapidocr", "pocketsphinx"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True", "[]"]


@pytest.mark.parametrize("mode", ["CMYK", "RGBA", "P", "L", "I;16", "1"])
async def test_pictures_of_any_kind_go_to_a_model(model: Callable[..., str], mode: str) -> None:
    data = Image.from_pil(picture().convert("L").convert(mode) if mode == "I;16" else picture().convert(mode), "TIFF")
    found = (await Detect(model("detector")).call({"image": "it", "min_score": 0.0}, {"it": data})).data
    assert len(found["objects"]) == 4
