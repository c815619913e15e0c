"""Tools with models: tiny random ones of the real classes, found, fed and read like those that people use.

What they say means nothing; that it is what the model says of this input is held against the model itself.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import media_models
import msgspec
import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from PIL import ImageDraw

from callboard import Audio, Image, ToolContext
from callboard.actors.models.store import MANIFEST, ModelStore
from callboard.actors.tools.errors import ToolError, ToolSetupFailed
from callboard.actors.tools.load import load_tools
from callboard.actors.tools.media.detect import Detect
from callboard.actors.tools.media.look import AskImage, DescribeImage
from callboard.actors.tools.media.model_tool import ModelTool
from callboard.actors.tools.media.segment import Segment
from callboard.actors.tools.media.sounds import Sound, resampled
from callboard.actors.tools.media.speak import Speak
from callboard.actors.tools.media.transcribe import Transcribe
from callboard.actors.tools.media.translate import Translate
from callboard.actors.tools.outcome import Outcome
from callboard.runtime.errors import Cancelled, ConfigError, MissingExtra
from callboard.schemas.models import InstalledModel, ModelFile

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`model("detector")`: the folder of a tiny model, made once."""
    base = tmp_path_factory.mktemp("media-models")
    made: dict[str, Path] = {}

    def folder(name: str, *options: Any) -> str:
        key = "-".join((name, *options))
        if key not in made:
            made[key] = getattr(media_models, name)(base / key, *options)
        return str(made[key])

    return folder


def picture(colour: str = "navy") -> PILImage.Image:
    drawn = PILImage.new("RGB", (80, 60), "orange")
    ImageDraw.Draw(drawn).ellipse((10, 10, 60, 50), fill=colour)
    return drawn


def shown(outcome: Outcome, name: str) -> PILImage.Image:
    file = outcome.media[name]
    assert isinstance(file, Image)
    return file.pil()


async def run(tool: ModelTool, **arguments: Any) -> Any:
    media = {"it": Image.from_pil(picture())}
    return (await tool.call(arguments, media)).data


# Detection


async def test_what_is_found_is_what_the_model_finds(model: Callable[..., str]) -> None:
    from transformers import AutoImageProcessor, YolosForObjectDetection

    reference = YolosForObjectDetection.from_pretrained(model("detector"))
    pixels = AutoImageProcessor.from_pretrained(model("detector"))(picture(), return_tensors="pt")
    with torch.inference_mode():
        found = reference(**pixels)
    probabilities = found.logits[0].softmax(-1)[:, :-1]  # the last class is "nothing"
    x, y, width, height = found.pred_boxes[0].unbind(-1)
    sides = [(x - width / 2) * 80, (y - height / 2) * 60, (x + width / 2) * 80, (y + height / 2) * 60]
    expected = []
    for number in range(4):
        best = int(probabilities[number].argmax())
        box = [min(max(int(side[number]), 0), limit) for side, limit in zip(sides, (80, 60, 80, 60), strict=True)]
        expected.append((["cat", "hat"][best], float(probabilities[number, best]), box))
    expected.sort(key=lambda thing: -thing[1])

    objects = (await run(Detect(model("detector")), image="it", min_score=0.0))["objects"]
    assert [thing["label"] for thing in objects] == [thing[0] for thing in expected]
    assert [thing["score"] for thing in objects] == pytest.approx([thing[1] for thing in expected], abs=1e-3)
    assert [thing["box"] for thing in objects] == [thing[2] for thing in expected]


async def test_things_are_chosen_by_label_score_and_number(model: Callable[..., str]) -> None:
    tool = Detect(model("detector"))
    everything = (await run(tool, image="it", min_score=0.0))["objects"]
    assert {thing["label"] for thing in everything} == {"cat", "hat"}
    hats = (await run(tool, image="it", min_score=0.0, labels=["Hat"]))["objects"]
    assert hats == [thing for thing in everything if thing["label"] == "hat"]
    assert (await run(tool, image="it", min_score=0.0, max_objects=2))["objects"] == everything[:2]
    limit = everything[1]["score"] + 1e-4
    assert (await run(tool, image="it", min_score=limit))["objects"] == everything[:1]
    with pytest.raises(ToolError, match="knows no 'dog'") as caught:
        await run(tool, image="it", labels=["dog"])
    assert "cat, hat" in caught.value.hint


async def test_things_are_found_by_name(model: Callable[..., str]) -> None:
    tool = Detect(model("named_detector"))
    found = (await run(tool, image="it", labels=["a dog", "a red car"], min_score=0.0))["objects"]
    assert {thing["label"] for thing in found} == {"a dog", "a red car"}
    scores = [thing["score"] for thing in found]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(ToolError, match="by name"):
        await run(tool, image="it")


async def test_boxes_are_drawn_on_a_picture_of_the_same_size(model: Callable[..., str]) -> None:
    outcome = await Detect(model("detector")).call(
        {"image": "it", "min_score": 0.0, "marked": True}, {"it": Image.from_pil(picture())}
    )
    marked = shown(outcome, "marked.png")
    assert marked.size == (80, 60)
    assert marked.tobytes() != picture().tobytes()


# Segmentation


async def test_regions_are_the_classes_of_the_pixels(model: Callable[..., str]) -> None:
    from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

    reference = SegformerForSemanticSegmentation.from_pretrained(model("segmenter"))
    pixels = AutoImageProcessor.from_pretrained(model("segmenter"))(picture(), return_tensors="pt")
    with torch.inference_mode():
        logits = reference(**pixels).logits
    classes = torch.nn.functional.interpolate(logits, size=(60, 80), mode="bilinear").argmax(1)[0].numpy()

    arguments = {"image": "it", "masks": True, "overlay": True}
    outcome = await Segment(model("segmenter")).call(arguments, {"it": Image.from_pil(picture())})
    regions = outcome.data["regions"]
    assert sum(region["share"] for region in regions) == pytest.approx(1.0, abs=1e-4)
    assert [region["share"] for region in regions] == sorted((r["share"] for r in regions), reverse=True)
    assert len(regions) == len(np.unique(classes)) > 1
    for region in regions:
        expected = classes == ["sky", "sea", "land"].index(region["label"])
        mask = np.asarray(region["mask"].pil())
        assert np.array_equal(mask, expected * np.uint8(255))
        rows, columns = np.nonzero(expected)
        assert region["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert shown(outcome, "overlay.png").size == (80, 60)


async def test_a_task_that_the_model_cannot_do_is_an_error(model: Callable[..., str]) -> None:
    with pytest.raises(ToolError, match="panoptic"):
        await run(Segment(model("segmenter")), image="it", task="panoptic")


# Words for pictures


async def test_a_conversation_is_answered_as_the_model_answers(model: Callable[..., str]) -> None:
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model("converser"))
    text = "user: <image>what is it?\nassistant: "
    inputs = processor(images=picture(), text=text, return_tensors="pt")
    reference: Any = LlavaForConditionalGeneration.from_pretrained(model("converser"))
    tokens = reference.generate(**inputs, max_new_tokens=12, do_sample=False)
    said = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

    tool = AskImage(model("converser"))
    assert said
    assert await run(tool, image="it", question="what is it?", max_tokens=12) == said
    assert await run(tool, image="it", question="who is it?", max_tokens=12) != said


async def test_a_caption_is_what_the_model_says_unasked(model: Callable[..., str]) -> None:
    from transformers import AutoProcessor, BlipForConditionalGeneration

    processor = AutoProcessor.from_pretrained(model("captioner"))
    pixels = processor(images=picture(), return_tensors="pt")
    reference: Any = BlipForConditionalGeneration.from_pretrained(model("captioner"))
    tokens = reference.generate(**pixels, max_new_tokens=8, do_sample=False)
    said = processor.batch_decode(tokens, skip_special_tokens=True)[0].strip()
    assert said
    assert await run(DescribeImage(model("captioner")), image="it", max_tokens=8) == said


async def test_the_likeliest_answer_is_picked(model: Callable[..., str]) -> None:
    from transformers import AutoProcessor, ViltForQuestionAnswering

    processor = AutoProcessor.from_pretrained(model("picker"))
    reference = ViltForQuestionAnswering.from_pretrained(model("picker"))
    for question in ("how many?", "is it round?"):
        with torch.inference_mode():
            logits = reference(**processor(images=picture(), text=question, return_tensors="pt")).logits
        expected = ["yes", "no", "two"][int(logits.argmax())]
        assert await run(AskImage(model("picker")), image="it", question=question) == expected


async def test_no_question_is_an_error(model: Callable[..., str]) -> None:
    with pytest.raises(ToolError, match="no question"):
        await run(AskImage(model("picker")), image="it", question=" ")


# Speech


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 300 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)


async def test_letters_are_heard_as_the_model_hears_them(model: Callable[..., str]) -> None:
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    samples = tone(16000)
    reference = Wav2Vec2ForCTC.from_pretrained(model("spelling_listener"))
    features = Wav2Vec2FeatureExtractor.from_pretrained(model("spelling_listener"))
    with torch.inference_mode():
        heard = reference(**features(samples, sampling_rate=16000, return_tensors="pt")).logits.argmax(-1)
    expected = Wav2Vec2CTCTokenizer.from_pretrained(model("spelling_listener")).batch_decode(heard)[0]

    sound = Audio.from_array(samples, 16000)
    found = (await Transcribe(model("spelling_listener")).call({"audio": "a"}, {"a": sound})).data
    assert found["text"].replace("<s>", "").replace("</s>", "") == expected.replace("<s>", "").replace("</s>", "")
    assert found["seconds"] == 0.5
    assert "".join(segment["text"] for segment in found["segments"]).replace(" ", "") == found["text"].replace(" ", "")
    assert found["segments"][-1]["end"] <= 0.6


async def test_a_model_is_given_the_rate_that_it_knows(model: Callable[..., str]) -> None:
    """The pipeline of transformers takes samples as they come: at the wrong rate it would hear another pitch."""
    tool = Transcribe(model("listener"))
    await tool.call({"audio": "a"}, {"a": Audio.from_array(tone(16000), 16000)})
    given: list[np.ndarray] = []
    pipeline = tool._pipeline

    class Spy:
        type = pipeline.type
        feature_extractor = pipeline.feature_extractor

        def __call__(self, samples: np.ndarray, **options: Any) -> Any:
            given.append(samples)
            return pipeline(samples, **options)

    tool._pipeline = Spy()
    stereo = np.stack([tone(44100), tone(44100)], axis=1)
    await tool.call({"audio": "a"}, {"a": Audio.from_array(stereo, 44100)})
    assert given[0].shape == (8000,)
    expected = resampled(Sound(tone(44100), 44100), 16000).samples
    assert np.abs(given[0] - expected).max() < 1e-3


async def test_a_language_goes_to_the_model_that_knows_it(model: Callable[..., str]) -> None:
    sound = {"a": Audio.from_array(tone(16000), 16000)}
    tool = Transcribe(model("listener"))
    english = (await tool.call({"audio": "a", "language": "en"}, sound)).data["text"]
    german = (await tool.call({"audio": "a", "language": "german"}, sound)).data["text"]
    assert english != german
    with pytest.raises(ToolError, match="klingon"):
        await tool.call({"audio": "a", "language": "klingon"}, sound)
    with pytest.raises(ToolError, match="takes no language"):
        await Transcribe(model("spelling_listener")).call({"audio": "a", "language": "en"}, sound)
    with pytest.raises(ToolError, match="takes no `words`"):
        await tool.call({"audio": "a", "words": ["one"]}, sound)


async def test_a_model_speaks_at_its_own_rate(model: Callable[..., str]) -> None:
    tool = Speak(model("speaker"))
    outcome = await tool.call({"text": "hello there"})
    audio = outcome.media["speech.wav"]
    assert isinstance(audio, Audio)
    assert audio.rate == outcome.data["rate"] == 16000
    assert len(audio.array()) == round(outcome.data["seconds"] * 16000) > 0
    assert np.abs(audio.array()).max() > 0
    with pytest.raises(ToolError, match="one voice"):
        await tool.call({"text": "hello", "voice": "de"})


# Translation


async def test_a_language_has_its_code(model: Callable[..., str]) -> None:
    from transformers import AutoTokenizer, M2M100ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(model("polyglot"), src_lang="eng_Latn")
    reference: Any = M2M100ForConditionalGeneration.from_pretrained(model("polyglot"))
    tool = Translate(model("polyglot"))
    outcomes = set[str]()
    for target in ("deu_Latn", "fra_Latn"):
        first = tokenizer.convert_tokens_to_ids(target)
        tokens = reference.generate(
            **tokenizer("abc", return_tensors="pt"), forced_bos_token_id=first, max_new_tokens=9, do_sample=False
        )
        expected = tokenizer.batch_decode(tokens, skip_special_tokens=True)[0].strip()
        found = await run(tool, text="abc", source="eng_Latn", target=target, max_tokens=9)
        assert found == expected
        outcomes.add(found)
    assert len(outcomes) == 2
    short = await run(tool, text="abc", source="ENG", target="fra", max_tokens=9)
    assert short == found


async def test_a_language_that_the_model_lacks_is_an_error_that_names_those_it_has(model: Callable[..., str]) -> None:
    tool = Translate(model("polyglot"))
    with pytest.raises(ToolError, match="'tlh_Latn'") as caught:
        await run(tool, text="abc", source="eng_Latn", target="tlh_Latn")
    assert "deu_Latn, eng_Latn, fra_Latn" in caught.value.hint
    with pytest.raises(ToolError, match="must be told the language"):
        await run(tool, text="abc", target="deu_Latn")


async def test_the_first_word_chooses_among_several_targets(model: Callable[..., str]) -> None:
    tool = Translate(model("pair_translator", "deu", "fra"))
    german = await run(tool, text="abc", target="deu", max_tokens=8)
    assert german == await run(tool, text="abc", target="DEU", max_tokens=8)
    inputs, _ = tool._prepared("abc", "", "fra")
    assert int(inputs["input_ids"][0, 0]) == tool._tokenizer.convert_tokens_to_ids(">>fra<<")
    with pytest.raises(ToolError, match="no language 'spa'"):
        await run(tool, text="abc", target="spa")


async def test_a_model_of_one_pair_does_not_pretend_to_know_another(model: Callable[..., str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model("pair_translator"), tmp_path / "pair"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "source_lang": "en", "target_lang": "de"}))
    tool = Translate(str(folder))
    assert isinstance(await run(tool, text="abc", target="de", max_tokens=4), str)
    with pytest.raises(ToolError, match="has the target language 'de', not 'fr'"):
        await run(tool, text="abc", target="fr")


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("told_in_words", "translate English to German: abc"),
        (
            "instructed",
            "user: Translate the following text from English into German. Answer with the translation alone.\n\nabc\n"
            "assistant: ",
        ),
    ],
)
async def test_some_are_told_in_words(model: Callable[..., str], name: str, prompt: str) -> None:
    tool = Translate(model(name))
    assert isinstance(await run(tool, text="abc", source="English", target="German", max_tokens=6), str)
    inputs, options = tool._prepared("abc", "English", "German")
    assert tool._tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == prompt
    assert options == {}


async def test_a_text_that_is_longer_than_the_model_reads_is_refused(model: Callable[..., str]) -> None:
    with pytest.raises(ToolError, match="reads 64"):
        await run(Translate(model("pair_translator")), text="a" * 65, target="de")
    for arguments, says in (({"text": " ", "target": "de"}, "empty"), ({"text": "a", "target": " "}, "no language")):
        with pytest.raises(ToolError, match=says):
            await run(Translate(model("pair_translator")), **arguments)


async def test_a_model_that_only_continues_text_is_refused(tmp_path: Path) -> None:
    media_models.instructed(tmp_path / "base", with_template=False)
    with pytest.raises(ToolSetupFailed, match="no chat template"):
        await run(Translate(str(tmp_path / "base")), text="abc", target="German")


# Finding and loading


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
