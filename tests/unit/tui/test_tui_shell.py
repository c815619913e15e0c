"""The app around its pages: the connection, keys, themes, small terminals."""

from __future__ import annotations

from pathlib import Path

import pytest
from tui_support import OpenApp

from callboard.runtime.errors import ConfigError
from callboard.tui.keys import TuiSettings, tui_settings
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


async def test_a_person_may_remap_keys_and_a_wrong_name_is_said(open_app: OpenApp) -> None:
    settings = TuiSettings(keys={"app.help": "ctrl+g", "app.helb": "x"})
    async with open_app("bus", settings=settings) as it:
        await it.pilot.press("f1")
        assert not it.app.screen.query("HelpPanel")
        await it.pilot.press("ctrl+g")
        assert it.app.screen.query("HelpPanel")
        assert any("did you mean app.help" in note.message for note in it.app._notifications)


def test_settings_that_do_not_fit_are_refused_with_what_was_meant() -> None:
    with pytest.raises(ConfigError) as wrong:
        tui_settings({"keys": {"chta.stop": "x"}})
    assert "chat.stop" in wrong.value.hint
    for bad in ({"thema": "dark"}, {"keys": {"app.help": ""}}, {"keys": 3}):
        with pytest.raises(ConfigError):
            tui_settings(bad)
