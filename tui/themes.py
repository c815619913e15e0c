"""The themes by name: light, dark, contrast, ansi (the terminal's own colours), and those that Textual has.

NO_COLOR is Textual's: it draws what any theme says in shades, or plainly in an ANSI theme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..runtime.errors import ConfigError
from ..runtime.matching import did_you_mean

if TYPE_CHECKING:
    from textual.app import App
    from textual.theme import Theme

DEFAULT = "dark"


# Of the colours below, in this order.
_ROLES = (
    *("primary", "secondary", "accent", "warning", "error", "success"),
    *("foreground", "background", "surface", "panel"),
)
_DARK = "#6ea8fe #9a8cff #ffb454 #ffb454 #ff6b6b #5ad19a #e6e6e6 #12151c #181c25 #222836"
_LIGHT = "#1f5fbf #6b4fc4 #b25c00 #a35200 #b3261e #1b7f4b #1b1f27 #fbfbfd #f1f3f7 #e2e6ee"
_CONTRAST = "#f0f000 #00ffff #00ffff #ffaf00 #ff5f5f #00ff00 #ffffff #000000 #000000 #1c1c1c"
_PLAIN_TEXT = {"text-muted": "#ffffff", "text-disabled": "#dddddd", "block-cursor-text-style": "bold reverse"}


def own_themes() -> list[Theme]:
    """The four of this app."""
    from textual.theme import BUILTIN_THEMES, Theme

    def theme(name: str, colours: str, **more: Any) -> Theme:
        return Theme(name=name, **dict(zip(_ROLES, colours.split(), strict=True)), **more)

    return [
        theme("dark", _DARK, dark=True),
        theme("light", _LIGHT, dark=False),
        theme("contrast", _CONTRAST, dark=True, boost="#303030", variables=_PLAIN_TEXT),
        _renamed(BUILTIN_THEMES["ansi-dark"], "ansi"),
    ]


def _renamed(theme: Theme, name: str) -> Theme:
    from dataclasses import replace

    return replace(theme, name=name)


def use(app: App[object], name: str) -> None:
    """Register the themes and take one. ConfigError for a name that nothing has."""
    for theme in own_themes():
        app.register_theme(theme)
    name = name or DEFAULT
    if name not in app.available_themes:
        guess = did_you_mean(name, list(app.available_themes))
        raise ConfigError(
            f"there is no theme '{name}'",
            hint=f"did you mean {guess}?" if guess else "dark, light, contrast and ansi are ours",
        )
    app.theme = name
