"""The person's own keys and theme: table `[tui]` of the settings.

    [tui]
    theme = "light"

    [tui.keys]
    "app.help" = "f1,ctrl+g"
    "chat.stop" = "ctrl+x"

The names are those of bindings.py; docs/tui.md lists them, and the palette shows each beside its action. One that
nothing has, and two that were given the same key where both hold, are said by the app once it is drawn, and the rest
holds: to know all names takes longer than the first paint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from ..runtime.errors import ConfigError
from ..runtime.matching import did_you_mean

# Whose keys hold on every page.
_EVERYWHERE = "app"


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
        if not keys.strip():
            raise ConfigError(f"[tui.keys]: '{name}' has no key", hint="give it one, ctrl+x say, or leave it out")
    return settings


def unknown_names(keys: Iterable[str], known: Sequence[str]) -> list[str]:
    """One line for each of the person's names that no binding has, with the nearest that one has."""
    lines: list[str] = []
    for name in keys:
        if name not in known:
            guess = did_you_mean(name, known)
            hint = f"did you mean {guess}?" if guess else "docs/tui.md lists the names, and ctrl+p shows them"
            lines.append(f"[tui.keys]: nothing is called '{name}'; {hint}")
    return lines


def shared_keys(keys: Mapping[str, str]) -> list[str]:
    """One line for each key that the person gave to two names of which only one can have it: of the same owner, or of
    the app, whose keys hold everywhere, and of any other."""
    lines: list[str] = []
    taken: dict[str, list[str]] = {}
    for name, given in keys.items():
        for key in dict.fromkeys(one.strip() for one in given.split(",")):
            for other in taken.setdefault(key, []):
                if _meet(name, other):
                    lines.append(f"[tui.keys]: '{other}' and '{name}' both have {key}; only one of them answers to it")
            taken[key].append(name)
    return lines


def _meet(one: str, other: str) -> bool:
    owners = {one.partition(".")[0], other.partition(".")[0]}
    return len(owners) == 1 or _EVERYWHERE in owners
