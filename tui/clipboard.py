"""Copying by OSC 52: the terminal puts it into its own clipboard, also at the other end of ssh."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.app import App

# GNU screen takes no longer strings in one piece.
_SCREEN_PIECE = 76


def sequence(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """What to write to the terminal. In tmux twice: for tmux itself (`set-clipboard on`), and through it to the
    terminal around it (`allow-passthrough on`); which of them is taken is up to its settings."""
    plain = f"\x1b]52;c;{base64.b64encode(text.encode('utf-8', 'replace')).decode()}\a"
    if environment.get("TMUX"):
        return plain + "\x1bPtmux;" + plain.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    if environment.get("STY"):
        pieces = (plain[start : start + _SCREEN_PIECE] for start in range(0, len(plain), _SCREEN_PIECE))
        return "".join(f"\x1bP{piece}\x1b\\" for piece in pieces)
    return plain


def copy(app: App[object], text: str) -> None:
    """Put `text` into the clipboard of the person's terminal, and into the app's own."""
    app._clipboard = text  # what ctrl+v in an input of this app pastes
    if app._driver is not None:
        app._driver.write(sequence(text))
