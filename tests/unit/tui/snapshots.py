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
    width, height = app.size
    path = FOLDER / f"{name}-{width}x{height}.svg"
    for field in app.screen.query("TextArea, Input"):
        field.cursor_blink = False
    text = screen_text(app)
    svg = normalised(_export(app, replace))
    if update:
        path.write_text(svg, encoding="utf-8")
        return
    assert path.exists(), f"no picture is kept at {path}: make it with --update-snapshots, and look at it"
    kept = path.read_text(encoding="utf-8")
    if kept != svg:
        beside = path.with_suffix(".new.svg")
        beside.write_text(svg, encoding="utf-8")
        words = difflib.unified_diff(_words(kept), _words(svg), "kept", "now", lineterm="", n=0)
        raise AssertionError(f"{path.name} differs, see {beside}\n" + "\n".join([*words][:40]) + "\n\n" + text)


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
