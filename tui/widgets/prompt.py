"""Where one writes: several lines, what was written before by the arrows, and completion of slash commands."""

from __future__ import annotations

from collections.abc import Callable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from ..styles import beside
from .prompt_area import PromptArea
from .safe_text import plain_line

Completion = tuple[str, str]
"""What the text becomes, and what is shown for it."""


class Prompt(Vertical):
    """`complete` gives what a text may become. `Sent` carries the text; the area is emptied by who takes it."""

    DEFAULT_CSS = beside(__file__)

    class Sent(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, complete: Callable[[str], list[Completion]], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._complete = complete
        self._found: list[Completion] = []
        self.past: list[str] = []
        self._place = 0  # in `past`; its length: what is being written
        self._draft = ""
        self._recalling = False
        self._closed_for = ""  # the person did not want completions of this text

    def compose(self) -> ComposeResult:
        yield OptionList(id="completions", markup=False)
        yield PromptArea("", id="area", soft_wrap=True, show_line_numbers=False, tab_behavior="focus")

    def on_mount(self) -> None:
        self.area.take = self._take_key
        self._list.can_focus = False
        self._list.display = False

    @property
    def area(self) -> PromptArea:
        return self.query_one(PromptArea)

    @property
    def _list(self) -> OptionList:
        return self.query_one("#completions", OptionList)

    @property
    def text(self) -> str:
        return self.area.text

    @text.setter
    def text(self, text: str) -> None:
        self.area.load_text(text)
        self.area.move_cursor(self.area.document.end)

    def set_past(self, prompts: list[str]) -> None:
        self.past = prompts
        self._place = len(prompts)

    def remember(self, prompt: str) -> None:
        self.set_past([*(old for old in self.past if old != prompt), prompt])
        self._draft = ""

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        if self._recalling:
            self._recalling = False
        else:
            self._place = len(self.past)
        self._find()

    def _find(self) -> None:
        """The completions of what is written now."""
        text = self.text
        wanted = text.startswith("/") and "\n" not in text and text != self._closed_for
        found = self._complete(text) if wanted else []
        if found == self._found:
            return
        self._found = found
        self._list.display = bool(self._found)
        if self._found:
            self._list.clear_options()
            self._list.add_options([Option(plain_line(shown)) for _, shown in self._found])
            self._list.highlighted = 0

    def _take_key(self, key: str) -> None:
        self._find()
        if key == "enter":
            if self._found and self._found[self._list.highlighted or 0][0].rstrip() != self.text.rstrip():
                self._take_completion()
                if self.text.endswith(" "):
                    return  # it wants to be told more
            text, self.text = self.text, ""
            self.hide_completions()
            self.post_message(self.Sent(text))
        elif key == "tab":
            if self._found:
                self._take_completion()
            else:
                self.screen.focus_next()
        elif self._found:
            step = -1 if key == "up" else 1
            self._list.highlighted = ((self._list.highlighted or 0) + step) % len(self._found)
        else:
            self._recall(-1 if key == "up" else 1)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        self._take_completion(event.option_index)
        self.area.focus()

    def _take_completion(self, index: int | None = None) -> None:
        self.text = self._found[self._list.highlighted or 0 if index is None else index][0]

    def give_back(self, text: str) -> None:
        """What was sent could not be: it is here again, before what was written since."""
        self.text = f"{text}\n{self.text}" if self.text else text
        self.hide_completions()

    def hide_completions(self) -> bool:
        """Whether there were any. They come again with the next key."""
        was = bool(self._found)
        self._closed_for = self.text
        self._found = []
        self._list.display = False
        return was

    def _recall(self, step: int) -> None:
        place = self._place + step
        if not 0 <= place <= len(self.past):
            return
        if self._place == len(self.past):
            self._draft = self.text
        self._place = place
        self._recalling = True
        self.text = self._draft if place == len(self.past) else self.past[place]
