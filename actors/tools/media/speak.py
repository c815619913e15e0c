"""Text to speech: eSpeak NG, or a text-to-speech model of transformers where one is set."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from ..context import ToolContext
from ..errors import ToolError
from ..values import Audio
from . import espeak
from .model_tool import ModelOptions, ModelTool, stopping
from .models import LoadedModel, ModelKind
from .sounds import Sound, pcm16

MAX_CHARACTERS = 20_000  # twenty minutes and more

# Those that give sound. Families that give spectrograms want a second model and a speaker's numbers beside them.
_KIND = ModelKind("text to speech", ("TEXT_TO_WAVEFORM",), "hf:facebook/mms-tts-eng")


class Spoken(msgspec.Struct, frozen=True):
    """`audio` is a WAV file of one channel with 16 bits."""

    audio: Audio
    seconds: float
    rate: int


class Speak(ModelTool, name="speak", read_only=True, idempotent=True, open_world=False, timeout=300.0, tags=("audio",)):
    """A voice: eSpeak NG's where no model is set."""

    kind = _KIND
    _pipeline: Any = None

    def setup(self) -> None:
        if self.model:
            super().setup()
        else:
            espeak.voices()  # or the error that says how to get it

    def load_parts(self, loaded: LoadedModel) -> None:
        from transformers import TextToAudioPipeline

        # Some families come with a processor, others with a tokenizer alone.
        has_processor = (loaded.folder / "processor_config.json").is_file()
        parts: dict[str, Any] = {"tokenizer": loaded.part("AutoTokenizer")}
        if has_processor:
            parts["processor"] = loaded.part("AutoProcessor")
        self._pipeline = TextToAudioPipeline(model=loaded.model, device=loaded.device, **parts)

    def drop_parts(self) -> None:
        self._pipeline = None

    def run(
        self,
        text: str,
        context: ToolContext,
        voice: str = "en",
        words_per_minute: Annotated[int, msgspec.Meta(ge=80, le=450)] = 175,
        pitch: Annotated[int, msgspec.Meta(ge=0, le=99)] = 50,
    ) -> Spoken:
        """Say a text aloud: speech as a sound file.

        Args:
            text: what to say
            voice: a language's code as in en, en-us, de, fr, es, cmn, with +f1 to +f5 for a woman's voice (en+f3)
            words_per_minute: how fast
            pitch: how high, 0 to 99
        """
        if not text.strip():
            raise ToolError("there is nothing to say: the text is empty")
        if len(text) > MAX_CHARACTERS:
            raise ToolError(
                f"the text has {len(text):,} characters; up to {MAX_CHARACTERS:,} are said at once",
                hint="say it in parts",
            )
        if self._pipeline is None:
            sound = espeak.spoken(text, voice, words_per_minute, pitch, context)
        elif (voice, words_per_minute, pitch) != ("en", 175, 50):
            raise ToolError(
                f"the model '{self.loaded.name}' has one voice, one speed and one pitch", hint="give the text alone"
            )
        else:
            sound = self._modelled(text, context)
        audio = Audio.from_array(pcm16(sound.samples), sound.rate, "speech.wav")
        return Spoken(audio, round(sound.seconds, 3), sound.rate)

    def _modelled(self, text: str, context: ToolContext) -> Sound:
        import numpy as np

        with self.computing(context):
            options = {"stopping_criteria": stopping(context)} if self.loaded.model.can_generate() else {}
            try:
                made = self._pipeline(text, **({"generate_kwargs": options} if options else {}))
            except (ValueError, RuntimeError, IndexError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot say this: {error}") from error
        context.check()
        samples = np.asarray(made["audio"], np.float32)
        if samples.ndim > 1:  # [num_channels, num_samples]
            samples = samples.mean(axis=0)
        if not samples.size:
            raise ToolError(f"the model '{self.loaded.name}' made no sound of this text")
        return Sound(samples.reshape(-1), int(made["sampling_rate"]))


def speak(options: ModelOptions) -> Speak:
    """The entry point."""
    return Speak(options.model, options.device)
