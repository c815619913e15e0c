"""What holds on every page, found out in one walk through all of them: badges, help, colours, sizes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
import pytest
from rich.color import Color, ColorType
from rich.style import Style
from snapshots import screen_text
from textual.pilot import Pilot
from tui_support import Daemon

from callboard.tui.app import CallboardApp
from callboard.tui.keys import TuiSettings
from callboard.tui.pages import PAGES
from callboard.tui.session import Access

# A walk draws each page many times.
pytestmark = pytest.mark.slow

# What makes shades of colours is the same for all pages; these have the most of them.
GREY = ("chat", "company", "serving", "tools")
THEMES = ("dark", "light", "contrast", "ansi")
# In the smallest every page; in the others one, since what the tabs and the line below show is no page's own.
SIZES: dict[tuple[int, int], tuple[str, ...]] = {
    (20, 5): tuple(PAGES), (40, 9): ("bus",), (20, 12): ("bus",), (80, 24): ("bus",),
}  # fmt: skip
PATIENCE_S = 60.0
# WCAG's contrast: 21 is black on white, 1 is nothing to be seen. What is dim on purpose has less.
LEAST = {"dark": 2.0, "light": 2.0, "contrast": 4.5}


@dataclass
class Tour:
    """By page, and by what is named beside."""

    screens: dict[tuple[str, tuple[int, int]], str] = field(default_factory=dict)
    colours: dict[tuple[str, str], list[tuple[str, Style]]] = field(default_factory=dict)
    grey: dict[str, list[tuple[str, Style]]] = field(default_factory=dict)
    helped: dict[str, tuple[str, str]] = field(default_factory=dict)
    """What the panel says, and what the widget in focus has to say."""


@pytest.fixture(scope="module")
def tour(daemon: Daemon) -> Tour:
    found = Tour()
    access = Access(state_dir=str(daemon.state))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "TMUX", "STY", "TEXTUAL", "COLORTERM"):
            patch.delenv(name, raising=False)
        anyio.run(_walk, access, found)
        patch.setenv("NO_COLOR", "1")
        anyio.run(_walk_in_grey, access, found)
    return found


async def _walk(access: Access, found: Tour) -> None:
    async with walking(access) as (app, pilot):
        app.set_badge("approvals", 3)
        for name in PAGES:
            await go(app, pilot, name)
            found.colours[name, THEMES[0]] = words_with_styles(app)
            focused = app.screen.focused
            assert focused is not None, f"nothing is in focus on {name}"
            app.action_show_help_panel()
            await until(app, pilot, lambda: bool(app.screen.query("#widget-help MarkdownBlock")))
            wanted = next(one.HELP for one in focused.ancestors_with_self if one.HELP)
            found.helped[name] = (screen_text(app), wanted.strip().splitlines()[0].removeprefix("## "))
            app.action_hide_help_panel()
        for theme, name in itertools.product(THEMES[1:], PAGES):
            app.theme = theme
            await go(app, pilot, name)
            found.colours[name, theme] = words_with_styles(app)
        for size, names in SIZES.items():
            await pilot.resize_terminal(*size)
            for name in names:
                await go(app, pilot, name)
                await until(app, pilot, lambda size=size: app.screen.size == size)
                found.screens[name, size] = screen_text(app)


async def _walk_in_grey(access: Access, found: Tour) -> None:
    async with walking(access) as (app, pilot):
        for name in GREY:
            await go(app, pilot, name)
            found.grey[name] = words_with_styles(app)


@asynccontextmanager
async def walking(access: Access) -> AsyncIterator[tuple[CallboardApp, Pilot[None]]]:
    app = CallboardApp(access, TuiSettings(), start="bus")
    async with app.run_test(size=(110, 30)) as pilot:
        await until(app, pilot, lambda: app.waiting is not None and app.waiting._known is not None)
        yield app, pilot


async def go(app: CallboardApp, pilot: Pilot[None], name: str) -> None:
    await app.show_page(name)
    await until(app, pilot, lambda: app.page is not None and name == app.page.NAME and app.page.is_open)
    await pilot.pause()


async def until(app: CallboardApp, pilot: Pilot[None], condition: Callable[[], bool]) -> None:
    with anyio.move_on_after(PATIENCE_S) as patience:
        while not condition():
            await pilot.pause()
    assert not patience.cancelled_caught, screen_text(app)
    await pilot.pause()


def words_with_styles(app: CallboardApp) -> list[tuple[str, Style]]:
    """All that is read; lines, blocks and bars are not."""
    strips = app.screen._compositor.render_strips()
    return [
        (segment.text, segment.style or Style())
        for strip in strips
        for segment in strip
        if any(letter.isalnum() for letter in segment.text)
    ]


def luminance(colour: Color) -> float:
    def linear(part: int) -> float:
        share = part / 255
        return share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = map(linear, colour.get_truecolor())
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(style: Style) -> float:
    assert style.color is not None
    assert style.bgcolor is not None
    high, low = sorted((luminance(style.color), luminance(style.bgcolor)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("theme", LEAST)
def test_all_words_of_every_page_can_be_read_in_every_theme(tour: Tour, page: str, theme: str) -> None:
    found = tour.colours[page, theme]
    assert len(found) > 5
    for text, style in found:
        assert contrast(style) >= LEAST[theme], f"'{text}' is {style}, a contrast of {contrast(style):.1f}"


@pytest.mark.parametrize("page", PAGES)
def test_the_ansi_theme_has_the_terminals_own_colours_and_none_on_itself(tour: Tour, page: str) -> None:
    for text, style in tour.colours[page, "ansi"]:
        for colour in (style.color, style.bgcolor):
            assert colour is None or colour.type in (ColorType.DEFAULT, ColorType.STANDARD), f"'{text}' is {style}"
        if style.color is not None and not style.color.is_default:
            assert style.color != style.bgcolor, f"'{text}' is {style}"


@pytest.mark.parametrize("page", GREY)
def test_no_color_leaves_shades_only_and_all_words_can_be_read(tour: Tour, page: str) -> None:
    for text, style in tour.grey[page]:
        for colour in (style.color, style.bgcolor):
            assert colour is not None
            assert len(set(colour.get_truecolor())) == 1, f"'{text}' is {style}"
        assert contrast(style) >= LEAST["dark"], f"'{text}' is {style}"


@pytest.mark.parametrize("page", PAGES)
def test_help_is_of_what_is_in_focus(tour: Tour, page: str) -> None:
    shown, title = tour.helped[page]
    assert title in shown


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_how_many_wait_is_said_in_every_size(tour: Tour, size: tuple[int, int]) -> None:
    for page in SIZES[size]:
        assert "3!" in tour.screens[page, size], page
