"""The person's own keys and theme: table `[tui]` of the settings.

    [tui]
    theme = "light"

    [tui.keys]
    "app.help" = "f1,ctrl+g"
    "chat.stop" = "ctrl+x"

The names are shown by F1 and listed in docs/tui.md. Those of pages are known once their page was shown, so a wrong one
of these is said then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from ..runtime.errors import ConfigError
from ..runtime.matching import did_you_mean
from .pages import PAGES

# Keys of the app itself and of the widgets that pages share.
SHARED = ("app", "dialog", "table")


class TuiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`theme`: dark, light, contrast, ansi or one of Textual's. `keys`: binding to keys, several with commas."""

    theme: str = ""
    keys: dict[str, str] = {}


def tui_settings(given: Mapping[str, Any]) -> TuiSettings:
    """Checked. Raises ConfigError that names the key."""
    try:
        settings = msgspec.convert(dict(given), TuiSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[tui] does not fit: {error}", hint="see docs/tui.md") from error
    for name, keys in settings.keys.items():
        owner = name.partition(".")[0]
        if owner not in PAGES and owner not in SHARED:
            guess = did_you_mean(owner, [*PAGES, *SHARED])
            hint = f"did you mean {guess}{name[len(owner) :]}?" if guess else "F1 shows the names"
            raise ConfigError(f"[tui.keys]: nothing is called '{name}'", hint=hint)
        if not keys.strip():
            raise ConfigError(f"[tui.keys]: '{name}' has no key", hint="give it one, ctrl+x say, or leave it out")
    return settings


def unknown_names(keys: Mapping[str, str], owner: str, known: Iterable[str]) -> list[str]:
    """One line for each of the person's names under `owner` that no binding has."""
    names = list(known)
    lines: list[str] = []
    for name in keys:
        if name.partition(".")[0] == owner and name not in names:
            guess = did_you_mean(name, names)
            lines.append(f"[tui.keys]: nothing is called '{name}'" + (f"; did you mean {guess}?" if guess else ""))
    return lines
