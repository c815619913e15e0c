"""What the tests of the terminal UI share: a real bus and daemon for a module, apps on it, and pictures to compare."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from textual.widgets import Input, TextArea

from callboard.tui.app import CallboardApp
from callboard.tui.keys import TuiSettings
from callboard.tui.session import Access

sys.path.insert(0, str(Path(__file__).parent))

from snapshots import check_picture, differences, screen_text
from tui_support import Daemon, Eventually, OpenApp, Picture, Running

MODELS = Path.home() / ".cache" / "callboard-test"


# Beyond it a test shows what the screen has; a busy machine may be slow.
PATIENCE_S = 45.0
PICTURE_PATIENCE_S = 10.0


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the person who runs the tests has set for their own terminal changes no picture."""
    for name in ("NO_COLOR", "TMUX", "STY", "TEXTUAL", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    # A cursor that blinks is there in one picture and not in the next.
    for field in (TextArea, Input):
        monkeypatch.setattr(field.cursor_blink, "_default", False)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One for the tests of a module, with the store of models that tests share."""
    base = tmp_path_factory.mktemp("tui")
    folders = {f"CALLBOARD_{name}_DIR": str(base / name.lower()) for name in ("STATE", "CACHE", "RUNTIME")}
    # Compiled kernels take many seconds; their names say what they are of.
    (MODELS / "native").mkdir(parents=True, exist_ok=True)
    (base / "cache").mkdir()
    (base / "cache" / "native").symlink_to(MODELS / "native")
    daemon = Daemon(base / "state", {**os.environ, **folders, "CALLBOARD_DATA_DIR": str(MODELS)})
    daemon.up()
    yield daemon
    daemon.down()


@pytest.fixture
def open_apps() -> list[CallboardApp]:
    """The apps of this test."""
    return []


@pytest.fixture
def eventually(open_apps: list[CallboardApp]) -> Eventually:
    """As everywhere; an app that failed meanwhile ends the wait with its error."""

    async def wait(condition: Callable[[], bool]) -> None:
        with anyio.move_on_after(PATIENCE_S) as patience:
            while not condition():
                for app in open_apps:
                    if app._exception is not None:
                        raise app._exception
                await anyio.sleep(0.01)
        if patience.cancelled_caught:
            raise AssertionError("it never came to that; the screen:\n" + "\n".join(map(screen_text, open_apps[-1:])))

    return wait


@pytest.fixture
def open_app(daemon: Daemon, eventually: Eventually, open_apps: list[CallboardApp]) -> OpenApp:
    """`async with open_app("chat", size=(80, 24)) as it: ...`: an app on the module's daemon, connected, its page open.

    `settings` are those of table `[tui]`; with `connected=False` nobody waits for the connection.
    """

    @asynccontextmanager
    async def open_one(
        page: str = "",
        *,
        size: tuple[int, int] = (120, 40),
        settings: TuiSettings | None = None,
        access: Access | None = None,
        connected: bool = True,
    ) -> AsyncIterator[Running]:
        app = CallboardApp(access or Access(state_dir=str(daemon.state)), settings, start=page)
        open_apps.append(app)
        async with app.run_test(size=size, notifications=True) as pilot:
            if connected:
                await eventually(lambda: app.page is not None and app.page.is_open)
                await pilot.pause()
            yield Running(app, pilot)

    return open_one


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="rewrite the pictures of the terminal UI")


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Picture:
    """`await picture(it.app, "chat", [(r"\\d+ ms", "0 ms")])`: the screen comes to be as `snapshots/chat-80x24.svg` has
    it. (A table is laid out anew some time after it got its rows.)

    The pairs replace, before it is compared, what differs from one time to the next, by a text repeated to its
    length. `--update-snapshots` or UPDATE_SNAPSHOTS=1 writes it anew.
    """
    update = bool(os.environ.get("UPDATE_SNAPSHOTS") or request.config.getoption("--update-snapshots", False))

    async def check(app: CallboardApp, name: str, replace: list[tuple[str, str]] | None = None) -> None:
        with anyio.move_on_after(PICTURE_PATIENCE_S):
            while not update and differences(app, name, replace or []):
                await anyio.sleep(0.05)
        check_picture(app, name, replace or [], update=update)

    return check
