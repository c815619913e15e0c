"""Things found in a picture, with a box around each: what a model was trained to find, or what is asked for by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from ..context import ToolContext
from ..errors import ToolError
from ..values import Image
from .drawing import corners, with_outlines
from .model_tool import ModelOptions, ModelTool
from .models import LoadedModel, ModelKind
from .pictures import open_picture, png

if TYPE_CHECKING:
    from PIL import Image as PILImage

_OBJECTS = "OBJECT_DETECTION"
_BY_NAME = "ZERO_SHOT_OBJECT_DETECTION"
_KIND = ModelKind("object detection", (_OBJECTS, _BY_NAME), "hf:PekingU/rtdetr_v2_r18vd")
# What their authors take. Scores of models that find things by name are low throughout.
_MIN_SCORE, _MIN_SCORE_BY_NAME = 0.5, 0.1


class Found(msgspec.Struct, frozen=True):
    """`score`: 0 to 1. `box`: left, top, right, bottom in pixels, within the picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]


class Detections(msgspec.Struct, frozen=True):
    """The surest first. `marked`: the picture with the boxes drawn, where it was asked for."""

    objects: tuple[Found, ...]
    marked: Image | None = None


class Detect(
    ModelTool, name="detect", read_only=True, idempotent=True, open_world=False, timeout=120.0, tags=("image",)
):
    """A detector of either kind."""

    kind = _KIND
    _pipeline: Any = None
    _by_name = False

    def load_parts(self, loaded: LoadedModel) -> None:
        from transformers import ObjectDetectionPipeline, ZeroShotObjectDetectionPipeline

        by_name = {name for _, name in ModelKind("", (_BY_NAME,), "").classes()}
        self._by_name = type(loaded.model).__name__ in by_name
        parts: dict[str, Any] = {"image_processor": loaded.part("AutoImageProcessor")}
        if self._by_name:
            parts["tokenizer"] = loaded.part("AutoTokenizer")
        pipeline: Any = ZeroShotObjectDetectionPipeline if self._by_name else ObjectDetectionPipeline
        self._pipeline = pipeline(model=loaded.model, device=loaded.device, **parts)

    def drop_parts(self) -> None:
        self._pipeline = None

    def run(
        self,
        image: Image,
        context: ToolContext,
        labels: Sequence[str] = (),
        min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None,
        max_objects: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100,
        marked: bool = False,
    ) -> Detections:
        """Find things in an image, with a box around each.

        Args:
            image: the picture
            labels: what to look for, as in ["a red car", "person"]; some models find only what they were trained on
            min_score: leave out what is less sure than this
            max_objects: the surest ones only
            marked: also give the picture back with the boxes drawn
        """
        picture = open_picture(image.bytes(), name=f"the image {image.name}".strip())
        wanted = [label.strip() for label in labels if label.strip()]
        usual = _MIN_SCORE_BY_NAME if self._by_name else _MIN_SCORE
        options: dict[str, Any] = {"threshold": usual if min_score is None else min_score}
        if self._by_name:
            if not wanted:
                raise ToolError(
                    f"the model '{self.loaded.name}' finds what is asked for by name",
                    hint='say in `labels` what to look for: ["person", "a red car"]',
                )
            options["candidate_labels"] = wanted
        with self.computing(context):
            try:
                raw = self._pipeline(picture, **options)
            except (ValueError, RuntimeError, IndexError, TypeError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot take this image: {error}") from error
        context.check()
        found = sorted((_found(entry, picture) for entry in raw), key=lambda thing: -thing.score)
        if wanted and not self._by_name:
            found = self._of_labels(found, wanted)
        found = found[:max_objects]
        drawn = None
        if marked:
            names = [f"{thing.label} {thing.score:.0%}" for thing in found]
            outlined = with_outlines(picture, [corners(thing.box) for thing in found], names)
            drawn = Image.from_bytes(png(outlined), "image/png", "marked.png")
        return Detections(tuple(found), drawn)

    def _of_labels(self, found: list[Found], wanted: list[str]) -> list[Found]:
        """Those with a label that was asked for. ToolError for one that the model does not know."""
        known = {label.lower(): label for label in self.loaded.model.config.id2label.values()}
        unknown = [label for label in wanted if label.lower() not in known]
        if unknown:
            names = sorted(known.values())
            shown = ", ".join(names[:100]) + (f" and {len(names) - 100} more" if len(names) > 100 else "")
            raise ToolError(f"the model '{self.loaded.name}' knows no '{unknown[0]}'", hint=f"it finds: {shown}")
        asked = {label.lower() for label in wanted}
        return [thing for thing in found if thing.label.lower() in asked]


def _found(entry: dict[str, Any], picture: PILImage.Image) -> Found:
    """Models put a corner of what the picture's edge cuts outside of it."""
    box = entry["box"]
    left, right = (min(max(float(box[x]), 0.0), float(picture.width)) for x in ("xmin", "xmax"))
    top, bottom = (min(max(float(box[y]), 0.0), float(picture.height)) for y in ("ymin", "ymax"))
    return Found(str(entry["label"]), round(float(entry["score"]), 4), (left, top, right, bottom))


def detect(options: ModelOptions) -> Detect:
    """The entry point."""
    return Detect(options.model, options.device)
