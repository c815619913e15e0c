"""Pictures that code in the sandbox makes: open matplotlib figures, images that it shows or ends with, as PNG files."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

# A model looks at a few pictures; a loop that makes thousands is a mistake.
_MOST = 32


class Images:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self.count = 0

    def stand_in_for_viewers(self) -> None:
        """`image.show()` asks this module of PIL for a viewer, which it imports when that is called: it gets us."""
        module = types.ModuleType("PIL.ImageShow")
        module.show = self._show  # type: ignore[attr-defined]
        sys.modules["PIL.ImageShow"] = module

    def _show(self, image: Any, title: str | None = None, **options: Any) -> bool:
        return self.take(image)

    def begin(self) -> None:
        """A new call: its pictures are numbered from 1."""
        for number in range(1, self.count + 1):
            try:
                os.unlink(self._path(number))
            except FileNotFoundError:
                continue
        self.count = 0

    def _path(self, number: int) -> str:
        return f"{self._folder}/image-{number}.png"

    def display(self, *values: Any) -> None:
        """Show pictures as pictures and everything else as text; `display` to the code."""
        for value in values:
            if not self.take(value):
                print(repr(value))

    def take(self, value: Any) -> bool:
        """Whether it is a picture; if so it is among the call's results now."""
        image_type = getattr(sys.modules.get("PIL.Image"), "Image", None)
        if image_type is not None and isinstance(value, image_type):
            if self.count < _MOST:
                picture = value if value.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else value.convert("RGB")
                picture.save(self._path(self.count + 1), "PNG")
                self.count += 1
            return True
        figure_type = getattr(sys.modules.get("matplotlib.figure"), "Figure", None)
        if figure_type is not None and isinstance(value, figure_type):
            self._save_figure(value)
            pyplot = sys.modules.get("matplotlib.pyplot")
            if pyplot is not None:
                pyplot.close(value)
            return True
        return False

    def take_figures(self) -> None:
        """Every open figure of pyplot; they are closed, as a notebook does after each cell."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        for number in pyplot.get_fignums():
            self._save_figure(pyplot.figure(number))
        pyplot.close("all")

    def _save_figure(self, figure: Any) -> None:
        if self.count < _MOST:
            figure.savefig(self._path(self.count + 1), format="png", bbox_inches="tight")
            self.count += 1
