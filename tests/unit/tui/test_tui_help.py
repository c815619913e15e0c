"""F1: every widget that can be in focus, every page and every dialog says what it does and with which keys."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from textual.screen import Screen
from textual.widget import Widget

from callboard.tui.bindings import modules_with_bindings
from callboard.tui.screens.base import Page


def owe_help() -> Iterator[type[Widget]]:
    """Classes of the app that a person has in focus or before them; those that others only derive from are none."""
    for name in modules_with_bindings():
        for cls in vars(importlib.import_module(name)).values():
            if isinstance(cls, type) and issubclass(cls, Widget) and cls.__module__ == name:
                is_screen = bool(cls.NAME) if issubclass(cls, Page) else _is_whole(cls)
                if cls.can_focus or is_screen:
                    yield cls


def _is_whole(cls: type[Widget]) -> bool:
    return issubclass(cls, Screen) and cls.compose is not Screen.compose


@pytest.mark.parametrize("cls", list(owe_help()), ids=lambda cls: cls.__name__)
def test_each_widget_page_and_dialog_has_help(cls: type[Widget]) -> None:
    title, _, words = (cls.HELP or "").strip().partition("\n\n")
    assert title.startswith("## "), f"{cls.__name__} has no HELP"
    assert words, f"{cls.__name__}: its HELP says nothing"
