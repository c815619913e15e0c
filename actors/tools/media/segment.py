"""A picture taken apart into regions, each with its name and its mask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from ..context import ToolContext
from ..errors import ToolError
from ..values import Image
from .drawing import with_masks
from .model_tool import ModelOptions, ModelTool
from .models import LoadedModel, ModelKind
from .pictures import open_picture, png

if TYPE_CHECKING:
    from PIL import Image as PILImage

_KIND = ModelKind(
    "image segmentation",
    ("SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "INSTANCE_SEGMENTATION", "IMAGE_SEGMENTATION"),
    "hf:nvidia/segformer-b0-finetuned-ade-512-512",
)
# This one must be told what to do in words that go through a tokenizer.
_WITH_TOKENIZER = ("oneformer",)


class Region(msgspec.Struct, frozen=True):
    """`score`: 0 to 1, null from models that give none. `share` of the picture's area. `box`: left, top, right, bottom
    in pixels. `mask`: as large as the picture, white where the region is; only where masks were asked for."""

    label: str
    score: float | None
    share: float
    box: tuple[int, int, int, int]
    mask: Image | None = None


class Segmentation(msgspec.Struct, frozen=True):
    """The largest region first. `overlay`: the picture with the regions in colours, where it was asked for."""

    regions: tuple[Region, ...]
    overlay: Image | None = None


class Segment(
    ModelTool, name="segment", read_only=True, idempotent=True, open_world=False, timeout=120.0, tags=("image",)
):
    """A model that gives each pixel a class, each thing a mask, or both."""

    kind = _KIND
    _pipeline: Any = None

    def load_parts(self, loaded: LoadedModel) -> None:
        from transformers import ImageSegmentationPipeline

        parts: dict[str, Any] = {"image_processor": loaded.part("AutoImageProcessor")}
        if loaded.family in _WITH_TOKENIZER:
            parts["tokenizer"] = loaded.part("AutoTokenizer")
        self._pipeline = ImageSegmentationPipeline(model=loaded.model, device=loaded.device, **parts)

    def drop_parts(self) -> None:
        self._pipeline = None

    def run(
        self,
        image: Image,
        context: ToolContext,
        task: Literal["", "semantic", "instance", "panoptic"] = "",
        min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None,
        masks: bool = False,
        overlay: bool = False,
    ) -> Segmentation:
        """Take an image apart into regions, each with a name.

        Args:
            image: the picture
            task: what to tell apart, where the model can do several: kinds of things, single things, or both
            min_score: leave out regions that are less sure than this
            masks: also give each region's mask as an image
            overlay: also give the picture back with the regions in colours
        """
        picture = open_picture(image.bytes(), name=f"the image {image.name}".strip())
        options: dict[str, Any] = {"subtask": task} if task else {}
        if min_score is not None:
            options["threshold"] = min_score
        with self.computing(context):
            try:
                raw = self._pipeline(picture, **options)
            except (ValueError, RuntimeError, IndexError, TypeError) as error:
                raise ToolError(f"the model '{self.loaded.name}' cannot do this: {error}") from error
        context.check()
        found = [entry for entry in raw if entry["mask"].getbbox() is not None]
        found.sort(key=lambda entry: -_share(entry["mask"]))
        colours = None
        if overlay:
            labels = [str(entry["label"]) for entry in found]
            colours = with_masks(picture, [entry["mask"] for entry in found], labels)
        return Segmentation(
            tuple(_region(entry, number, masks) for number, entry in enumerate(found, 1)),
            Image.from_bytes(png(colours), "image/png", "overlay.png") if colours else None,
        )


def _region(entry: dict[str, Any], number: int, with_mask: bool) -> Region:
    mask = entry["mask"]
    score = entry["score"]
    return Region(
        label=str(entry["label"]),
        score=None if score is None else round(float(score), 4),
        share=round(_share(mask), 6),
        box=mask.getbbox(),
        mask=Image.from_bytes(png(mask), "image/png", f"mask-{number}.png") if with_mask else None,
    )


def _share(mask: PILImage.Image) -> float:
    """The part of the picture that is white."""
    return mask.histogram()[255] / (mask.width * mask.height)


def segment(options: ModelOptions) -> Segment:
    """The entry point."""
    return Segment(options.model, options.device)
