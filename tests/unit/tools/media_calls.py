"""What the tests of tools with models share: a picture, a sound, and a call."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw

from callboard import Image
from callboard.actors.tools.media.model_tool import ModelTool
from callboard.actors.tools.outcome import Outcome


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


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.4 * np.sin(2 * np.pi * 300 * np.arange(int(rate * seconds)) / rate)).astype(np.float32)
