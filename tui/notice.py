"""Telling a person who looks elsewhere: a bell, and the notification that many terminals show for OSC 9."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .widgets.safe_text import plain_line

if TYPE_CHECKING:
    from textual.app import App

MAX_TEXT = 120


def ring(app: App[Any], text: str) -> None:
    app.bell()
    driver = app._driver
    if driver is not None:
        driver.write(sequence(text, in_tmux=bool(os.environ.get("TMUX"))))


def sequence(text: str, *, in_tmux: bool = False) -> str:
    """OSC 9 (iTerm2's, also of kitty, WezTerm, Ghostty, Windows Terminal). tmux hands on what is wrapped for it.

    What controls a terminal is no part of the text: it was written by whoever asks.
    """
    said = f"\x1b]9;{plain_line(text, limit=MAX_TEXT).plain}\x07"
    return f"\x1bPtmux;{said.replace(chr(27), chr(27) * 2)}\x1b\\" if in_tmux else said
