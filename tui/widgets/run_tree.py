"""A run of an agent as a live tree: thoughts, plans, model calls, tool calls, and the runs that it started."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from ..run_story import ASKED, OPEN, Moment, RunStory
from ..styles import beside
from ..train_view import duration
from .safe_text import plain_line

MARKS = {"ok": ("✓", "green"), OPEN: ("●", "cyan"), ASKED: ("?", "bold yellow")}
BAD = ("✗", "bold red")
_KINDS = {"thought": ("~", "italic"), "plan": ("≡", "magenta"), "person": ("☺", "yellow"), "note": ("·", "dim")}
_ONE_LINE = 160


class RunTree(Tree[tuple[str, str]]):
    """`show(stories, root)`: what is new is added and what changed is changed; the cursor stays, and follows the end
    while it is there. A node's data are the run and the moment's id."""

    HELP = """
## Steps of a run

The newest is below, and the cursor stays at the end while it is there. Enter folds what a step has below it. The step
under the cursor stands beside, whole; `c` copies it. `[` and `]` go through the run event by event, `0` shows it as
it is now, `f` begins again after this step.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor_down", "Down", show=False, id="tree.down"),
        Binding("k", "cursor_up", "Up", show=False, id="tree.up"),
    ]

    class Chosen(Message):
        """Another moment is under the cursor."""

        def __init__(self, tree: RunTree, run: str, moment: str) -> None:
            super().__init__()
            self.tree, self.run, self.moment = tree, run, moment

        @property
        def control(self) -> RunTree:
            return self.tree

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("", id=id)
        self.show_root = False
        self.guide_depth = 2
        self._places: dict[tuple[str, str], TreeNode[tuple[str, str]]] = {}
        self._labels: dict[tuple[str, str], Text] = {}
        self._shown = ""

    def show(self, stories: Mapping[str, RunStory], root: str) -> None:
        story = stories.get(root)
        if root != self._shown or story is None:
            self.clear()
            self._places.clear()
            self._labels.clear()
            self._shown = root
        if story is None:
            return
        follows = self.cursor_line < 0 or self.cursor_line >= self.last_line
        now = time.time()
        self._fill(self.root, story, stories, now, frozenset())
        known = {(root, moment.id) for moment in story.moments}
        if any(key not in known for key in self._places if key[0] == root):  # an earlier time is shown
            gone = [key for key in self._places if key[0] == root and key not in known]
            for key in gone:
                self._places.pop(key).remove()
                self._labels.pop(key, None)
        if follows:
            self.call_after_refresh(self._to_end)

    def _to_end(self) -> None:
        if self.last_line >= 0:
            self.move_cursor_to_line(self.last_line)

    def _fill(
        self, parent: TreeNode[tuple[str, str]], story: RunStory, stories: Mapping[str, RunStory], now: float,
        above: frozenset[str],
    ) -> None:  # fmt: skip
        for moment in story.moments:
            key = (story.run, moment.id)
            text = label(moment, now)
            node = self._places.get(key)
            if node is None:
                node = self._places[key] = parent.add(text, key, expand=True, allow_expand=bool(moment.child))
            elif self._labels[key] != text:
                node.set_label(text)
            self._labels[key] = text
            child = stories.get(moment.child)
            if child is not None and child.run not in above:
                node.allow_expand = True
                self._fill(node, child, stories, now, above | {story.run})

    @property
    def chosen(self) -> tuple[str, str]:
        """(run, moment), both "" where there is none."""
        node = self.cursor_node
        return node.data if node is not None and node.data is not None else ("", "")

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[tuple[str, str]]) -> None:
        event.stop()
        if event.node.data is not None:
            self.post_message(self.Chosen(self, *event.node.data))


def label(moment: Moment, now: float) -> Text:
    if moment.kind == "end":
        good = moment.title == "finished"
        answer = moment.details.get("answer") or moment.details.get("why", "")
        mark = Text("■ ", "bold green" if good else "bold red").append(moment.title, "bold")
        return mark.append_text(plain_line(f"  {answer}", limit=_ONE_LINE))
    if not moment.is_step:
        mark, style = _KINDS.get(moment.kind, _KINDS["note"])
        return Text(f"{mark} ", style).append_text(plain_line(moment.title, style, limit=_ONE_LINE))
    mark, style = MARKS.get(moment.status, BAD)
    line = Text(f"{mark} ", style).append_text(plain_line(f"{moment.id} ", "dim"))
    line.append_text(plain_line(moment.title, "bold" if moment.kind == "tool" else "", limit=60))
    if moment.kind == "tool":
        line.append_text(plain_line(f" {moment.details.get('arguments', '')}", "dim", limit=60))
    if moment.status not in ("ok", OPEN):
        line.append(f"  {moment.status}", style)
    if (seconds := moment.seconds(now)) is not None:
        line.append(f"  {_short(seconds)}", "dim")
    if moment.prompt_tokens or moment.completion_tokens:
        line.append(f"  {moment.prompt_tokens}+{moment.completion_tokens} tok", "dim")
    if moment.status == "ok" and (result := moment.details.get("result", "")):
        line.append_text(plain_line(f"  → {result}", "green", limit=80))
    return line


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else duration(seconds)
