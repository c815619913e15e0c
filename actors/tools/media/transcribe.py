"""Speech to text: a model of transformers where one is set, else PocketSphinx, which must be told what to expect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ..context import ToolContext
from ..errors import ToolError
from ..values import Audio
from .model_tool import ModelOptions, ModelTool, stopping, where_set
from .models import LoadedModel, ModelKind
from .sounds import Sound, read_wav, resampled
from .sphinx import HeardWord, SphinxRecognizer

MAX_SPHINX_SECONDS = 600.0

_KIND = ModelKind("speech recognition", ("SPEECH_SEQ_2_SEQ", "CTC", "TDT", "RNNT"), "hf:openai/whisper-small")


class Segment(msgspec.Struct, frozen=True):
    """A part of what was heard, and the seconds from and to which; `end` null where the model does not say."""

    text: str
    start: float
    end: float | None


class Transcript(msgspec.Struct, frozen=True):
    """`text` is empty where no speech was heard. `segments`: words or passages, where the model tells their times."""

    text: str
    seconds: float
    segments: tuple[Segment, ...] = ()


class Transcribe(
    ModelTool,
    name="transcribe",
    read_only=True,
    idempotent=True,
    open_world=False,
    timeout=600.0,
    tags=("audio", "text"),
):
    """An ear: PocketSphinx's where no model is set."""

    kind = _KIND
    _pipeline: Any = None
    _sphinx: SphinxRecognizer | None = None

    def setup(self) -> None:
        if self.model:
            super().setup()
        else:
            self._sphinx = SphinxRecognizer()

    def load_parts(self, loaded: LoadedModel) -> None:
        from transformers import AutomaticSpeechRecognitionPipeline

        self._pipeline = AutomaticSpeechRecognitionPipeline(
            model=loaded.model,
            feature_extractor=loaded.part("AutoFeatureExtractor"),
            tokenizer=loaded.part("AutoTokenizer"),
            device=loaded.device,
        )

    def drop_parts(self) -> None:
        self._pipeline = None
        self._sphinx = None

    def run(
        self,
        audio: Audio,
        context: ToolContext,
        words: Sequence[str] = (),
        keywords: Sequence[str] = (),
        grammar: str = "",
        language: str = "",
    ) -> Transcript:
        """Write down what is said in a sound.

        Args:
            audio: the speech, a WAV file
            words: for the recognizer without a model: all the words or phrases that can be said, in any order
            keywords: for the recognizer without a model: phrases to listen for in other speech
            grammar: for the recognizer without a model: what can be said, in JSGF
            language: for a model that knows several: the language that is spoken, as en or english
        """
        sound = read_wav(audio.bytes(), name=f"the sound {audio.name}".strip())
        expected = [name for name, value in zip(_EXPECTED, (words, keywords, grammar), strict=True) if value]
        if self._sphinx is None:
            if expected:
                raise ToolError(
                    f"the model '{self.loaded.name}' hears any words: it takes no `{expected[0]}`",
                    hint=f"leave `{expected[0]}` out",
                )
            return self._modelled(sound, language, context)
        if len(expected) != 1 or language:
            raise ToolError(
                "without a speech model, English alone is understood, and exactly one of `words`, `keywords` and "
                "`grammar` must say what can be heard",
                hint=f"for free speech, whoever runs this sets {where_set(self.info.name)} to a model such as "
                f"{_KIND.example}",
            )
        if sound.seconds > MAX_SPHINX_SECONDS:
            raise ToolError(
                f"the sound lasts for {sound.seconds:.0f} seconds; up to {MAX_SPHINX_SECONDS:.0f} are taken"
            )
        with self._computing:
            context.check()
            heard = self._heard(self._sphinx, sound, words, keywords, grammar)
        segments = tuple(Segment(word.text, word.start, word.end) for word in heard)
        return Transcript(" ".join(word.text for word in heard), round(sound.seconds, 3), segments)

    def _heard(
        self, sphinx: SphinxRecognizer, sound: Sound, words: Sequence[str], keywords: Sequence[str], grammar: str
    ) -> list[HeardWord]:
        if words:
            return sphinx.hear_words(sound, words)
        return sphinx.hear_keywords(sound, keywords) if keywords else sphinx.hear_grammar(sound, grammar)

    def _modelled(self, sound: Sound, language: str, context: ToolContext) -> Transcript:
        family = self.loaded.family
        options: dict[str, Any] = {}
        if self._pipeline.type == "ctc":
            options["return_timestamps"] = "word"
        else:
            options["stopping_criteria"] = stopping(context)
        if family == "whisper":
            options["return_timestamps"] = True  # without, it hears thirty seconds and stops
            if language:
                options["language"] = language
        elif language:
            raise ToolError(f"the model '{self.loaded.name}' takes no language", hint="leave `language` out")
        samples = resampled(sound, self._pipeline.feature_extractor.sampling_rate).samples
        with self.computing(context):
            try:
                found = self._pipeline(samples, **options)
            except (ValueError, RuntimeError, IndexError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot read this sound: {error}") from error
        context.check()
        chunks = found.get("chunks") or ()
        segments = tuple(Segment(chunk["text"].strip(), *_times(chunk["timestamp"])) for chunk in chunks)
        return Transcript(found["text"].strip(), round(sound.seconds, 3), segments)


_EXPECTED = ("words", "keywords", "grammar")


def _times(stamps: tuple[float | None, float | None]) -> tuple[float, float | None]:
    start, end = stamps
    return round(float(start or 0.0), 3), None if end is None else round(float(end), 3)


def transcribe(options: ModelOptions) -> Transcribe:
    """The entry point."""
    return Transcribe(options.model, options.device)
