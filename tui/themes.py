"""The themes by name: light, dark, contrast, ansi (the terminal's own colours), and those that Textual has.

NO_COLOR is Textual's: it draws what any theme says in shades, or plainly in an ANSI theme.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..runtime.errors import ConfigError
from ..runtime.matching import did_you_mean

if TYPE_CHECKING:
    from textual.app import App
    from textual.theme import Theme

DEFAULT = "dark"


def own_themes() -> list[Theme]:
    """The four of this app."""
    from textual.theme import BUILTIN_THEMES, Theme

    dark = Theme(
        name="dark",
        primary="#6ea8fe",
        secondary="#9a8cff",
        accent="#ffb454",
        warning="#ffb454",
        error="#ff6b6b",
        success="#5ad19a",
        foreground="#e6e6e6",
        background="#12151c",
        surface="#181c25",
        panel="#222836",
        dark=True,
    )
    light = Theme(
        name="light",
        primary="#1f5fbf",
        secondary="#6b4fc4",
        accent="#b25c00",
        warning="#a35200",
        error="#b3261e",
        success="#1b7f4b",
        foreground="#1b1f27",
        background="#fbfbfd",
        surface="#f1f3f7",
        panel="#e2e6ee",
        dark=False,
    )
    contrast = Theme(
        name="contrast",
        primary="#ffff00",
        secondary="#00ffff",
        accent="#00ffff",
        warning="#ffaf00",
        error="#ff5f5f",
        success="#00ff00",
        foreground="#ffffff",
        background="#000000",
        surface="#000000",
        panel="#1c1c1c",
        boost="#303030",
        dark=True,
        variables={"text-muted": "#ffffff", "text-disabled": "#dddddd", "block-cursor-text-style": "bold reverse"},
    )
    ansi = BUILTIN_THEMES["ansi-dark"]
    return [dark, light, contrast, _renamed(ansi, "ansi")]


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
