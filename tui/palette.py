"""What the palette offers of the screen that it was called from: its bindings, those of its widgets, and what else a
page has."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from textual.app import SystemCommand
from textual.binding import Binding
from textual.screen import Screen
from textual.widget import Widget

from .bindings import bindings_of
from .screens.base import Page

if TYPE_CHECKING:
    from .app import CallboardApp


def commands_of(app: CallboardApp, screen: Screen[object]) -> Iterator[SystemCommand]:
    """Of several widgets of a kind, the one in focus is meant, else the first that is seen."""
    offered: set[str] = set()
    for widget in _widgets(screen):
        for id, bindings in bindings_of(type(widget)).items():
            if id not in offered:
                offered.add(id)
                owner = id.partition(".")[0].capitalize()
                help = f"Key: {_keys(app, id, bindings)}  ({id})"
                yield SystemCommand(f"{owner}: {bindings[0].description}", help, _doing(widget, bindings[0].action))
    if isinstance(screen, Page):
        yield from screen.more_commands()


def _widgets(screen: Screen[object]) -> Iterator[Widget]:
    yield screen
    if screen.focused is not None:
        yield from (node for node in screen.focused.ancestors_with_self if isinstance(node, Widget))
    yield from _seen(screen)


def _seen(widget: Widget) -> Iterator[Widget]:
    for child in widget.displayed_children:
        yield child
        yield from _seen(child)


def _keys(app: CallboardApp, id: str, bindings: list[Binding]) -> str:
    """As the person has them."""
    if (own := app.own_settings.keys.get(id)) is not None:
        bindings = [bindings[0].with_key(key.strip(), "") for key in own.split(",")]
    return " ".join(dict.fromkeys(app.get_key_display(binding) for binding in bindings))


def _doing(widget: Widget, action: str) -> Callable[[], Awaitable[None]]:
    async def do() -> None:
        if widget.focusable:  # a filter, say, takes the keys that follow
            widget.screen.set_focus(widget)
        await widget.run_action(action)

    return do
