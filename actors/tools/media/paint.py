"""Text to image, by a pipeline of diffusers that the user names."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ....runtime.errors import CallboardError
from ...models.folder import PIPELINE_INDEX, is_pipeline_folder, read_json
from ..context import ToolContext
from ..errors import ToolError, ToolSetupFailed
from ..values import Image
from .model_tool import LocalModel, ModelOptions
from .models import first_line, importing, place, quietly
from .pictures import png

MAX_PIXELS = 2048 * 2048
_EXAMPLE = "hf:stable-diffusion-v1-5/stable-diffusion-v1-5"
_SEEDS = 1 << 32

Side = Annotated[int, msgspec.Meta(ge=0, le=4096)]


class Painted(msgspec.Struct, frozen=True):
    """`seed` makes the same picture again, with all else the same."""

    image: Image
    seed: int


class Paint(
    LocalModel, name="paint", read_only=True, idempotent=False, open_world=False, timeout=1800.0, tags=("image",)
):
    """A diffusion pipeline: its folder has `model_index.json`, and a folder for each part that this names."""

    _pipeline: Any = None

    def setup(self) -> None:
        folder = self.find()
        index = _index(self.model, folder)
        where, dtype = place(self.device)
        with importing("paint"):
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline
        try:
            with quietly(), _quiet():
                pipeline = DiffusionPipeline.from_pretrained(
                    str(folder),
                    dtype=dtype,
                    local_files_only=True,
                    use_safetensors=True,
                    trust_remote_code=False,
                )
        except ImportError as error:
            raise ToolSetupFailed(
                f"the model '{self.model}' needs a package that is not installed: {first_line(error)}"
            ) from error
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
            raise ToolSetupFailed(
                f"the model '{self.model}' cannot be loaded as {index}: {first_line(error)}",
                hint="it may be damaged, or keep its weights in other files than safetensors",
            ) from error
        takes = inspect.signature(pipeline.__call__).parameters
        if "prompt" not in takes or "image" in takes:
            raise ToolSetupFailed(
                f"the model '{self.model}' is {index}, and the tool '{self.info.name}' needs one that makes an "
                "image of a text alone",
                hint=f"{_EXAMPLE} is one",
            )
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline.to(where)
        self._takes = frozenset(takes)

    def drop_parts(self) -> None:
        self._pipeline = None

    def run(
        self,
        prompt: str,
        context: ToolContext,
        avoid: str = "",
        width: Side = 0,
        height: Side = 0,
        steps: Annotated[int, msgspec.Meta(ge=1, le=500)] | None = None,
        guidance: Annotated[float, msgspec.Meta(ge=0, le=100)] | None = None,
        seed: Annotated[int, msgspec.Meta(ge=0, lt=_SEEDS)] | None = None,
    ) -> Painted:
        """Paint an image of what a text describes.

        Args:
            prompt: what is to be seen
            avoid: what is not to be seen
            width: in pixels; 0 for what the model was made for
            height: in pixels; 0 for what the model was made for
            steps: more take longer and are finer
            guidance: how closely to keep to the text
            seed: the same number gives the same image again
        """
        if not prompt.strip():
            raise ToolError("there is nothing to paint: the prompt is empty")
        if width * height > MAX_PIXELS:
            raise ToolError(f"{width} x {height} is too large: up to {MAX_PIXELS:,} pixels are painted")
        drawn = random.randrange(_SEEDS) if seed is None else seed
        options = self._options(avoid=avoid, width=width, height=height, steps=steps, guidance=guidance)
        with self.computing(context):
            import torch

            if "callback_on_step_end" in self._takes:
                options["callback_on_step_end"] = _Watch(context)
            # On the CPU, whatever computes: one seed is one picture on every machine, as far as its numbers are exact.
            options["generator"] = torch.Generator("cpu").manual_seed(drawn)
            try:
                made = self._pipeline(prompt, output_type="pil", **options)
            except CallboardError:
                raise
            except (ValueError, RuntimeError, IndexError, TypeError) as error:
                raise ToolError(f"the model '{self.model}' cannot paint this: {first_line(error)}") from error
        if any(getattr(made, "nsfw_content_detected", None) or ()):
            raise ToolError("the model's own safety checker holds the image back", hint="ask for something else")
        return Painted(Image.from_bytes(png(made.images[0]), "image/png", "painting.png"), drawn)

    def _options(self, **given: Any) -> dict[str, Any]:
        """As the pipeline calls them, of those that were given. ToolError for one that it does not know."""
        options: dict[str, Any] = {}
        for name, value in given.items():
            if value is None or (value in ("", 0) and name != "guidance"):
                continue
            theirs = _THEIR_NAMES.get(name, name)
            if theirs not in self._takes:
                raise ToolError(f"the model '{self.model}' takes no `{name}`", hint=f"leave `{name}` out")
            options[theirs] = value
        return options


_THEIR_NAMES = {"avoid": "negative_prompt", "steps": "num_inference_steps", "guidance": "guidance_scale"}


class _Watch:
    """Between two steps of the pipeline: tells how far it is, and ends it where the call was given up."""

    def __init__(self, context: ToolContext) -> None:
        self._context = context

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._context.check()
        self._context.progress(step + 1, float(getattr(pipeline, "num_timesteps", 0)), "painting")
        return tensors


def _index(name: str, folder: Path) -> str:
    """The class that a pipeline's folder is for. ToolSetupFailed for a folder that is none."""
    if not is_pipeline_folder(folder):
        raise ToolSetupFailed(
            f"the model '{name}' has no {PIPELINE_INDEX}, and the tool 'paint' needs a pipeline of diffusers",
            hint=f"{_EXAMPLE} is one",
        )
    try:
        found = read_json(folder / PIPELINE_INDEX).get("_class_name")
    except CallboardError as error:
        raise ToolSetupFailed(f"the model '{name}': {error}", hint=error.hint) from error
    if not isinstance(found, str):
        raise ToolSetupFailed(f"the model '{name}' wants code of its own ({found!r}), which is not run here")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and remarks of diffusers; what matters in them is raised instead."""
    import logging as levels

    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()


def paint(options: ModelOptions) -> Paint:
    """The entry point."""
    return Paint(options.model, options.device)
