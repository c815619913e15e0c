"""What a tool gave back: its text, its JSON, its pictures drawn, its files with their sizes."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.widgets import Static

from ...schemas.tool import MediaKind, ToolPiece, ToolProgress, ToolResult
from ..coalesce import Coalesced
from ..half_blocks import NotDrawn, draw_picture
from ..styles import beside
from ..tool_call import Received
from .call_text import readable
from .safe_text import plain

PICTURE_ROWS = 24
_BAR = 20


class ToolResultView(VerticalScroll, can_focus=True):
    HELP = """
## What came back

The text of the result, its value as JSON where that says more, its pictures drawn. The arrows scroll, `c` copies the
text, `w` writes its files, ctrl+x gives up a call that is under way.
"""
    DEFAULT_CSS = beside(__file__)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._said = ""
        self._progress: ToolProgress | None = None
        self._draw = Coalesced(self, self._show)
        self._is_over = False
        self.received: Sequence[Received] = ()

    def compose(self) -> ComposeResult:
        yield Static(id="result-text")

    def clear(self, words: str = "") -> None:
        self._said, self._progress, self.received, self._is_over = "", None, (), False
        self._put(plain(words, "dim"))

    def hear(self, item: ToolProgress | ToolPiece) -> None:
        """What a call says on its way."""
        if isinstance(item, ToolProgress):
            self._progress = item
        else:
            self._said += item.text
        self._draw.poke()

    def _show(self) -> None:
        if self._is_over:  # what was heard last is not drawn over the end
            return
        text = Text()
        if (progress := self._progress) is not None:
            if progress.total:
                share = min(1.0, progress.done / progress.total)
                done = round(share * _BAR)
                text.append("█" * done, "green").append("░" * (_BAR - done), "dim").append(f" {share:.0%} ")
            else:
                text.append(f"{progress.done:g} ")
            text.append_text(plain(progress.text)).append("\n")
        self._put(text.append_text(plain(self._said)))

    def show(self, result: ToolResult, received: Sequence[Received]) -> None:
        self._progress, self.received = None, received
        text = Text(f"{result.seconds:.2f} s\n", "dim")
        text.append_text(readable(result.text)).append("\n")
        if result.value and readable(result.value).plain != readable(result.text).plain:
            text.append("\nvalue\n", "underline").append_text(readable(result.value)).append("\n")
        for one in received:
            text.append_text(plain(f"\n{one.name}: {one.kind.value}, {one.mime}, {len(one.data):,} bytes\n", "bold"))
            if one.kind is MediaKind.IMAGE:
                text.append_text(self._picture(one)).append("\n")
        if received:
            text.append("\nw writes them to files\n", "dim")
        self._end(text)

    def fail(self, words: str) -> None:
        self._progress = None
        self._end(plain(words, "bold red"))

    def _end(self, text: Text) -> None:
        self._is_over = True
        self._put(text)

    def _put(self, text: Text) -> None:
        self.query_one("#result-text", Static).update(text)

    def _picture(self, one: Received) -> Text:
        try:
            return draw_picture(one.data, max(10, self.size.width - 4), PICTURE_ROWS)
        except NotDrawn as error:
            return plain(f"{error}", "dim")
