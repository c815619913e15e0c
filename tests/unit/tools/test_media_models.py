"""Tools with models: tiny random ones of the real classes, fed and read like those that people use.

What they say means nothing; that it is what the model says of this input is held against the model itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import media_models
import numpy as np
import pytest
import torch
from media_calls import picture, run, shown, tone

from callboard import Audio, Image
from callboard.actors.tools.errors import ToolError, ToolSetupFailed
from callboard.actors.tools.media.detect import Detect
from callboard.actors.tools.media.look import AskImage, DescribeImage
from callboard.actors.tools.media.segment import Segment
from callboard.actors.tools.media.sounds import Sound, resampled
from callboard.actors.tools.media.speak import Speak
from callboard.actors.tools.media.transcribe import Transcribe
from callboard.actors.tools.media.translate import Translate

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


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
