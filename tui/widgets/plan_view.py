"""The plan of a run as a drawing, each step marked with how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import ScrollableContainer
from textual.widgets import Static

from ..plan_drawing import PlanNode, draw_plan
from ..run_story import ASKED, OPEN, PlannedStep
from ..styles import beside
from .safe_text import plain, plain_line

_MARKS = {
    "waiting": ("·", "dim"),
    "ready": ("○", ""),
    OPEN: ("●", "bold cyan"),
    ASKED: ("?", "bold yellow"),
    "ok": ("✓", "green"),
}


class PlanView(ScrollableContainer, can_focus=True):
    HELP = """
## Plan

From left to right: a step stands behind those that it needs. `·` waits for others, `○` has what it needs, `●` is
under way, `?` waits for a person, `✓` is done, `✗` failed. The arrows scroll, `c` copies the steps.
"""
    DEFAULT_CSS = beside(__file__)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shown: Sequence[PlannedStep] | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="plan-drawing")
        yield Static(id="plan-words")

    def show(self, plan: Sequence[PlannedStep]) -> None:
        if plan == self._shown:
            return
        self._shown = plan
        nodes = [_node(one) for one in plan]
        drawn = Text("\n", no_wrap=True).join(draw_plan(nodes))
        drawn.no_wrap = True
        self.query_one("#plan-drawing", Static).update(drawn if plan else Text("this run has no plan", "dim"))
        words = Text()
        for one in plan:
            words.append_text(plain_line(f"{one.step.id}  ", "bold")).append_text(plain(f"{one.step.plan}\n"))
            words.append_text(plain(f"    {one.step.tool}[{one.step.input}]\n", "dim"))
        self.query_one("#plan-words", Static).update(words)


def _node(one: PlannedStep) -> PlanNode:
    mark, style = _MARKS.get(one.status, ("✗", "bold red"))
    label = plain_line(f"{mark} {one.step.id} {one.step.tool}", limit=24).plain
    return PlanNode(one.step.id, label, one.step.needs, style)
