"""Pictures put into words by a model: a description, or the answer to a question.

Models that continue a conversation with pictures in it (LLaVA, Qwen-VL, SmolVLM), ones that caption (BLIP, GIT), and
ones made for questions (ViLT, BLIP for question answering) each take their input in a way of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ..context import ToolContext
from ..errors import ToolError
from ..values import Image
from .model_tool import ModelOptions, ModelTool, stopping
from .models import LoadedModel, ModelKind
from .pictures import open_picture

if TYPE_CHECKING:
    from PIL import Image as PILImage

Tokens = Annotated[int, msgspec.Meta(ge=1, le=4096)]

_DESCRIBES = ModelKind("image description", ("IMAGE_TEXT_TO_TEXT",), "hf:HuggingFaceTB/SmolVLM-256M-Instruct")
_ANSWERS = ModelKind(
    "questions about images",
    ("VISUAL_QUESTION_ANSWERING", "IMAGE_TEXT_TO_TEXT"),
    "hf:HuggingFaceTB/SmolVLM-256M-Instruct",
)
_PICKS_AN_ANSWER = ("vilt",)


class _Looking(ModelTool):
    """A model with the processor that makes numbers of its pictures and texts."""

    _processor: Any = None

    def load_parts(self, loaded: LoadedModel) -> None:
        self._processor = loaded.part("AutoProcessor")

    def drop_parts(self) -> None:
        self._processor = None

    def _say(self, picture: PILImage.Image, prompt: str, max_tokens: int, context: ToolContext) -> str:
        """What the model says of a picture when it is asked `prompt`; the same each time."""
        with self.computing(context):
            try:
                inputs = self._inputs(picture, prompt).to(self.loaded.device, self.loaded.dtype)
                tokens = self.loaded.model.generate(
                    **inputs, max_new_tokens=max_tokens, do_sample=False, stopping_criteria=stopping(context)
                )
            except (ValueError, RuntimeError, IndexError, TypeError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot take this: {error}") from error
            context.check()
            return self._processor.batch_decode(_new(tokens, inputs), skip_special_tokens=True)[0].strip()

    def _inputs(self, picture: PILImage.Image, prompt: str) -> Any:
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image", "image": picture}, {"type": "text", "text": prompt}]
            return self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        if prompt:
            return self._processor(images=picture, text=prompt, return_tensors="pt")
        return self._processor(images=picture, return_tensors="pt")

    @property
    def _converses(self) -> bool:
        return bool(getattr(self._processor, "chat_template", None))


class DescribeImage(
    _Looking,
    name="describe_image",
    read_only=True,
    idempotent=True,
    open_world=False,
    timeout=300.0,
    tags=("image", "text"),
):
    """A model that captions, or one that converses and is asked for a description."""

    kind = _DESCRIBES

    def run(self, image: Image, context: ToolContext, detail: bool = False, max_tokens: Tokens = 256) -> str:
        """Say what is to be seen in an image.

        Args:
            image: the picture
            detail: a paragraph instead of a sentence, from models that can
            max_tokens: at most this long
        """
        picture = open_picture(image.bytes(), name=f"the image {image.name}".strip())
        asked = "Describe this image in detail." if detail else "Describe this image in one sentence."
        # One that only captions would take a prompt as the beginning of its caption.
        return self._say(picture, asked if self._converses else "", max_tokens, context)


class AskImage(
    _Looking, name="ask_image", read_only=True, idempotent=True, open_world=False, timeout=300.0, tags=("image", "text")
):
    """A model for questions about images, or one that converses."""

    kind = _ANSWERS

    def run(self, image: Image, question: str, context: ToolContext, max_tokens: Tokens = 256) -> str:
        """Answer a question about an image.

        Args:
            image: the picture
            question: what to find out, as in "how many people are there?"
            max_tokens: at most this long
        """
        if not question.strip():
            raise ToolError("there is no question")
        picture = open_picture(image.bytes(), name=f"the image {image.name}".strip())
        if self.loaded.family in _PICKS_AN_ANSWER:
            return self._picked(picture, question, context)
        return self._say(picture, question, max_tokens, context)

    def _picked(self, picture: PILImage.Image, question: str, context: ToolContext) -> str:
        """The likeliest of the answers that the model was trained to choose from."""
        with self.computing(context):
            try:
                inputs = self._processor(images=picture, text=question, return_tensors="pt", truncation=True)
                logits = self.loaded.model(**inputs.to(self.loaded.device, self.loaded.dtype)).logits
            except (ValueError, RuntimeError, IndexError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot take this: {error}") from error
            return self.loaded.model.config.id2label[int(logits.argmax(-1))]


def _new(tokens: Any, inputs: Any) -> Any:
    """[1, num_tokens]: what was generated, without the prompt where the model gives that back before it."""
    prompt = inputs.get("input_ids")
    if (
        prompt is not None
        and tokens.shape[1] >= prompt.shape[1]
        and bool((tokens[:, : prompt.shape[1]] == prompt).all())
    ):
        return tokens[:, prompt.shape[1] :]
    return tokens


def describe_image(options: ModelOptions) -> DescribeImage:
    """The entry point."""
    return DescribeImage(options.model, options.device)


def ask_image(options: ModelOptions) -> AskImage:
    """The entry point."""
    return AskImage(options.model, options.device)
