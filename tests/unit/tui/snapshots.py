"""Pictures of the app that are kept and compared.

Textual exports a screen as SVG. What is kept is that SVG with what changes by itself taken out: identifiers that are
made from the picture's content, and what a test names (times, process ids). When a picture differs, the new one is
left beside it as `NAME.new.svg` and the lines of text that differ are said.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("snapshots")
_IDENTIFIER = re.compile(r"terminal-\d+-")
# Where a text stands and how long it is: says nothing that its place in the file does not, but varies with the text.
_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def screen_text(app: Any) -> str:
    """What a person reads, line by line."""
    height = app.size.height
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip).rstrip() for strip in lines[:height])


def normalised(svg: str) -> str:
    """Without what changes by itself."""
    return _FONT.sub("", _IDENTIFIER.sub("terminal-", svg))


def check_picture(app: Any, name: str, replace: list[tuple[str, str]], *, update: bool) -> None:
    """Raises AssertionError where the screen is not as it was kept."""
    path = _path(app, name)
    if update:
        path.write_text(normalised(_export(app, replace)), encoding="utf-8")
    elif svg := differences(app, name, replace):
        beside = path.with_suffix(".new.svg")
        beside.write_text(svg, encoding="utf-8")
        kept = path.read_text(encoding="utf-8")
        words = difflib.unified_diff(_words(kept), _words(svg), "kept", "now", lineterm="", n=0)
        lines = "\n".join([*words][:40])
        raise AssertionError(f"{path.name} differs, see {beside}\n{lines}\n\n{screen_text(app)}")


def differences(app: Any, name: str, replace: list[tuple[str, str]]) -> str:
    """The picture of the screen where it is not as it was kept, else ""."""
    path = _path(app, name)
    assert path.exists(), f"no picture is kept at {path}: make it with --update-snapshots, and look at it"
    svg = normalised(_export(app, replace))
    return "" if svg == path.read_text(encoding="utf-8") else svg


def _path(app: Any, name: str) -> Path:
    width, height = app.size
    return FOLDER / f"{name}-{width}x{height}.svg"


def _export(app: Any, replace: list[tuple[str, str]]) -> str:
    """As `App.export_screenshot`, with replacements of equal width made in the text before it is drawn."""
    from io import StringIO

    from rich.console import Console
    from rich.segment import Segment, Segments

    width, height = app.size
    console = Console(
        width=width,
        height=height,
        file=StringIO(),
        force_terminal=True,
        color_system="truecolor",
        record=True,
        legacy_windows=False,
        safe_box=False,
    )
    segments: list[Segment] = []
    for strip in app.screen._compositor.render_strips()[:height]:
        line = "".join(segment.text for segment in strip)
        for pattern, new in replace:
            line = re.sub(pattern, lambda found, new=new: (new * len(found[0]))[: len(found[0])], line)
        place = 0
        for segment in strip:
            end = place + len(segment.text)
            segments.append(Segment(line[place:end], segment.style))
            place = end
        segments.append(Segment.line())
    console.print(Segments(segments))
    return console.export_svg(title="callboard", unique_id="terminal")


def _words(svg: str) -> list[str]:
    return [
        re.sub(r"<[^>]*>", "", line).replace("&#160;", " ").rstrip() for line in svg.splitlines() if "<text" in line
    ]
