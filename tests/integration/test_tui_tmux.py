"""`callboard tui` in tmux, typed into as a person would, read off the screen, with the real model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from board import with_compiled_kernels

from callboard.actors.models.store import ModelStore

COMMAND = [sys.executable, "-m", "callboard.runtime.cli"]
MODELS = Path.home() / ".cache" / "callboard-test"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


class Terminal:
    """A tmux of its own, with one window."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._socket = str(folder / "tmux")
        self._environment = environment

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, *arguments], env=self._environment, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, command: list[str], width: int, height: int) -> None:
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), *command)
        self.tmux("set-option", "-g", "set-clipboard", "on")

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p")

    def type(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def wait(self, condition: Callable[[str], bool], seconds: float = 90.0) -> str:
        """Until the screen is so; what it has then. tmux tells nobody when a screen changes."""
        deadline = time.monotonic() + seconds
        while not condition(screen := self.screen()):
            assert time.monotonic() < deadline, f"it never came to that; the screen:\n{screen}"
            time.sleep(0.05)
        return screen

    def wait_for_end(self, seconds: float = 30.0) -> None:
        """Until the app has ended, and with it its window and tmux."""
        deadline = time.monotonic() + seconds
        while (
            subprocess.run(["tmux", "-S", self._socket, "has-session"], capture_output=True, check=False).returncode
            == 0
        ):
            assert time.monotonic() < deadline, "the app did not end"
            time.sleep(0.05)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    ModelStore(MODELS / "models").pull("smollm2")
    folders = {f"CALLBOARD_{name}_DIR": str(tmp_path / name.lower()) for name in ("STATE", "CACHE", "RUNTIME")}
    with_compiled_kernels(tmp_path / "cache")
    data = tmp_path / "data"
    data.mkdir()
    (data / "models").symlink_to(MODELS / "models")  # the store of the tests, and chats of this test's own
    environment = {**os.environ, **folders, "CALLBOARD_DATA_DIR": str(data), "TERM": "xterm-256color"}
    environment.pop("TMUX", None)
    terminal = Terminal(tmp_path, environment)
    yield terminal
    subprocess.run(["tmux", "-S", str(tmp_path / "tmux"), "kill-server"], capture_output=True, check=False)
    subprocess.run([*COMMAND, "down"], env=environment, capture_output=True, timeout=60, check=False)


def test_a_person_comes_to_an_empty_machine_talks_with_a_model_and_looks_at_the_bus(
    terminal: Terminal, tmp_path: Path
) -> None:
    recording = tmp_path / "tour.cast"
    terminal.start([*COMMAND, "tui", "--record", str(recording)], 100, 30)
    terminal.type("What is the capital of France? Answer in one sentence.")  # before anything is drawn: no key is lost
    terminal.wait(lambda screen: "No daemon runs" in screen)
    terminal.press("y")
    terminal.wait(lambda screen: "● connected" in screen and "What is the capital of France?" in screen)
    terminal.press("Enter")
    terminal.wait(lambda screen: "Start smollm2?" in screen)
    terminal.press("y")
    terminal.wait(lambda screen: "Paris" in screen)
    terminal.wait(lambda screen: "tokens/s," in screen)  # with the comma once the answer has ended
    terminal.press("M-a")
    try:
        terminal.wait(lambda screen: "copied the answer" in screen, 20)
    except AssertionError:
        print([line for line in recording.read_text().splitlines() if '"i"' in line])
        raise
    assert "││ a" not in terminal.screen()  # the letter that came with alt is no text
    assert "Paris" in terminal.tmux("show-buffer")  # by OSC 52, through tmux
    terminal.type("/ren")
    terminal.wait(lambda screen: "/rename" in screen)
    terminal.press("Tab")
    terminal.type("A capital")
    terminal.press("Enter")
    terminal.wait(lambda screen: "A capital" in screen.splitlines()[2])
    terminal.tmux("resize-window", "-x", "20", "-y", "5")
    terminal.wait(lambda screen: len(screen.splitlines()) <= 5)
    terminal.tmux("resize-window", "-x", "100", "-y", "30")
    terminal.press("F4")
    terminal.wait(lambda screen: "messages" in screen and "server" in screen)
    terminal.press("C-q")
    terminal.wait_for_end()
    assert '"o"' in recording.read_text()
