"""The app around its pages: the connection, keys, themes, small terminals."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from tui_support import Daemon, Eventually, OpenApp

from callboard.actors.bench.pty_program import pty_program
from callboard.runtime.errors import ConfigError
from callboard.tui.app import CallboardApp
from callboard.tui.keys import TuiSettings, tui_settings
from callboard.tui.recording import Recorder, RecordingUnfit, play
from callboard.tui.session import Access, NotConnected

pytestmark = pytest.mark.anyio


async def test_the_app_finds_the_daemon_and_says_that_it_is_connected(open_app: OpenApp) -> None:
    async with open_app("bus", size=(80, 24)) as it:
        assert "● connected" in it.screen_text()


async def test_without_a_daemon_it_says_so_and_asking_fails_at_once(open_app: OpenApp, tmp_path: Path) -> None:
    async with open_app("bus", access=Access(state_dir=str(tmp_path)), connected=False) as it:
        session = it.app.session
        assert session is not None
        while session.trouble is None:
            await it.pilot.pause()
        await it.pilot.pause()
        assert "not connected" in it.screen_text()
        with pytest.raises(NotConnected):
            _ = session.client


@pytest.mark.parametrize("size", [(20, 5), (40, 12), (80, 24), (200, 60)])
async def test_no_size_of_a_terminal_is_too_small_or_too_large(open_app: OpenApp, size: tuple[int, int]) -> None:
    async with open_app("bus", size=size) as it:
        await it.pilot.press("f1")
        await it.pilot.press("f1")
        assert it.screen_text()


def test_settings_that_do_not_fit_are_refused() -> None:
    for bad in ({"thema": "dark"}, {"keys": {"app.help": ""}}, {"keys": 3}):
        with pytest.raises(ConfigError):
            tui_settings(bad)


async def test_a_daemon_that_is_not_there_is_started_if_the_person_agrees_and_its_end_and_return_are_said(
    open_app: OpenApp, eventually: Eventually, tmp_path: Path
) -> None:
    state = tmp_path / "callboard-state"  # the one that this test's environment names
    other = Daemon(state, dict(os.environ))
    try:
        async with open_app("bus", access=Access(), connected=False) as it:
            await eventually(lambda: "No daemon runs" in it.screen_text())
            assert "`callboard down` stops it" in it.screen_text()
            await it.pilot.press("y")
            await eventually(lambda: "● connected" in it.screen_text() and it.page.is_open)
            await anyio.to_thread.run_sync(other.down)
            await eventually(lambda: "○ not connected" in it.screen_text() and not it.page.is_open)
            await anyio.to_thread.run_sync(other.up)  # at another address, with other keys
            await eventually(lambda: "● connected" in it.screen_text() and it.page.is_open)
    finally:
        await anyio.to_thread.run_sync(other.down)


async def test_what_is_shown_is_recorded_and_can_be_played(tmp_path: Path) -> None:
    path = tmp_path / "tour.cast"
    record = Recorder(path, 80, 24)
    record.output("\x1b[1mbold\x1b[0m\x1b]52;c;c3RvbGVu\x07\x1b]0;title\x1b\\ plain\x9b2J")
    record.key("q")
    record.resized(100, 30)
    record.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written: list[str] = []

    def nobody_until_the_end(seconds: float) -> str:
        return "q" if seconds > 10 else ""

    play(path, written.append, nobody_until_the_end)
    assert "\x1b[1mbold\x1b[0m plain" in "".join(written)
    assert not re.search("52;|title|2J\\s*$", "".join(written[1:]))
    with path.open("a") as file:
        file.write('[1.0, "o", "cut sh')  # as after a crash
    play(path, written.append, lambda seconds: "q")
    for bad in ("", "{}", '{"version": 3, "width": 1, "height": 1}'):
        path.write_text(bad)
        with pytest.raises(RecordingUnfit):
            play(path, written.append, lambda seconds: "q")


@pytest.mark.parametrize("theme", ["dark", "light", "contrast", "ansi", "nord"])
async def test_each_theme_shows_every_page(open_app: OpenApp, theme: str) -> None:
    async with open_app("bus", settings=TuiSettings(theme=theme)) as it:
        await it.pilot.press("f2")
        await it.pilot.pause()
        assert it.app.theme == theme


async def test_no_color_shows_shades_only(open_app: OpenApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with open_app("bus") as it:
        svg = it.app.export_screenshot()
        colours = set(re.findall(r"fill: (#[0-9a-f]{6})", svg))
        assert colours
        assert all(c[1:3] == c[3:5] == c[5:7] for c in colours - {"#c5c8c6", "#292929", "#d1d2d4"}), colours


async def test_an_unknown_theme_is_refused_with_what_was_meant() -> None:
    with pytest.raises(ConfigError) as wrong:
        CallboardApp(Access(), TuiSettings(theme="drak"))
    assert "dark" in wrong.value.hint


def test_nothing_but_the_app_imports_textual() -> None:
    """The rest of the package in a fresh Python, everything that can be imported without extras."""
    program = (
        "import sys, pkgutil, importlib, callboard\n"
        "for zone in ('runtime', 'schemas'):\n"
        "    package = importlib.import_module(f'callboard.{zone}')\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(module.name)\n"
        "import callboard.actors.serve.commands, callboard.actors.agent.commands, callboard.tui.command\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'textual'], 'textual is there'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


async def test_help_says_what_the_widget_in_focus_does_and_which_keys_it_has(
    open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("bus", size=(140, 50)) as it:
        await it.pilot.press("f1")
        await eventually(lambda: "Newest at the bottom" in it.screen_text() and "Send again" in it.screen_text())
        await it.pilot.press("f2", "f1")
        await eventually(lambda: "Enter sends" in it.screen_text())


async def test_a_click_on_a_page_among_the_tabs_goes_there(open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("bus", size=(120, 30)) as it:
        place = next(begin for begin, _, name in it.page.query_one("TabBar")._spans if name == "tools")
        await it.pilot.click("TabBar", offset=(place + 6, 0))
        await eventually(lambda: it.page.NAME == "tools" and it.page.is_open)


def test_a_recording_is_played_by_the_command_in_a_terminal_and_ends_with_q(tmp_path: Path) -> None:
    path = tmp_path / "tour.cast"
    record = Recorder(path, 80, 24)
    record.output("\x1b[1mas it\x1b[0m was\x1b]0;a title\x07")
    record.close()
    command = [sys.executable, "-m", "callboard.runtime.cli", "tui", "--replay", str(path)]
    with pty_program(command, {}) as terminal:
        terminal.wait_for("as it was", 60.0)
        assert b"a title" not in terminal._written
        os.write(terminal._master, b"q")
        assert terminal._process.wait(30.0) == 0
