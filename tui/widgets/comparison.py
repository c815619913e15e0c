"""Results of several models side by side: a column for each, a line for each figure that any of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Label, Static

from ...schemas.models import FineTuneResults, ModelResults
from ...schemas.quantize import QuantizeReport
from ..census import short_size
from ..styles import beside
from .dialog import Dialog
from .evaluation_lines import evaluation_lines, evaluation_remarks
from .fitted_table import FittedTable
from .safe_text import plain, plain_line

NONE = "\u2013"
COLUMN_LIMIT = 40

_QUANTIZED: Sequence[tuple[str, Callable[[QuantizeReport], str]]] = (
    ("quantized", lambda one: f"{one.method}, {one.bits} bits"),
    ("size before", lambda one: short_size(one.bytes_before)),
    ("size after", lambda one: short_size(one.bytes_after)),
    ("bits a weight", lambda one: f"{one.bits_per_weight:.2f}"),
    ("perplexity before", lambda one: f"{one.perplexity_before:.3f}"),
    ("perplexity after", lambda one: f"{one.perplexity_after:.3f}"),
    ("it grew by", lambda one: f"{one.perplexity_after / one.perplexity_before - 1:+.2%}"),
    ("same next token", lambda one: f"{one.token_agreement:.1%}"),
    ("tokens compared", lambda one: f"{one.held_out_tokens:,}"),
)
_FINE_TUNED: Sequence[tuple[str, Callable[[FineTuneResults], str]]] = (
    ("fine-tuned from", lambda one: one.base),
    ("task, method", lambda one: f"{one.task}, {one.method}"),
    ("steps", lambda one: f"{one.steps:,}"),
    ("tokens learned", lambda one: f"{one.tokens:,}"),
    ("training loss", lambda one: _loss(one.training_loss)),
    ("evaluation loss", lambda one: _loss(one.evaluation_loss)),
    ("evaluated on", lambda one: f"{one.evaluated_on:,} samples" if one.evaluated_on else NONE),
)


def figures_of(results: Sequence[ModelResults]) -> list[tuple[str, tuple[str, ...]]]:
    """The lines: a title and a text for each model. What no model has is left out."""
    lines = [("size", tuple(short_size(one.size) for one in results))]
    for title, show in _QUANTIZED:
        lines.append((title, tuple(NONE if one.quantized is None else show(one.quantized) for one in results)))
    for title, say in _FINE_TUNED:
        lines.append((title, tuple(NONE if one.fine_tuned is None else say(one.fine_tuned) for one in results)))
    lines += evaluation_lines(results, NONE)
    return [line for line in lines if set(line[1]) != {NONE}]


def remarks_on(results: Sequence[ModelResults]) -> list[str]:
    """What the figures do not say: who has none, and which of them must not be compared."""
    remarks = [
        f"{one.model} has no results: none were written with it, and no evaluation is kept"
        for one in results
        if _is_bare(one)
    ]
    remarks += [f"{one.model}: {one.trouble}" for one in results if one.trouble]
    reports = [one.quantized for one in results if one.quantized is not None]
    if len({(one.calibration, one.held_out_tokens, f"{one.perplexity_before:.3f}") for one in reports}) > 1:
        remarks.append("the perplexities are of different models or texts: only how much each grew can be compared")
    tuned = [one.fine_tuned for one in results if one.fine_tuned is not None]
    if len({(one.task, one.evaluated_on) for one in tuned if one.evaluation_loss is not None}) > 1:
        remarks.append("the evaluation losses are of different samples or tasks")
    return remarks + evaluation_remarks(results)


class Comparison(Dialog[None]):
    """Over the page; escape closes it."""

    HELP = """
## Results side by side

A column a model, a line a figure. The arrows scroll, `c` copies the table, escape closes it.
"""
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter", "close", "Close", id="dialog.close", priority=True),
        Binding("c", "copy", "Copy", id="dialog.copy"),
    ]

    def __init__(self, results: Sequence[ModelResults]) -> None:
        super().__init__()
        self._results = results

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog-box"):
            yield Label("Results side by side", classes="dialog-question")
            yield FittedTable(cursor_type="row", zebra_stripes=True, id="figures")
            yield Static(plain("\n".join(remarks_on(self._results))), classes="dialog-detail")

    def on_mount(self) -> None:
        table = self.query_one("#figures", FittedTable)
        table.add_column("")
        for one in self._results:
            table.add_column(plain_line(one.model, limit=COLUMN_LIMIT))
        for title, values in figures_of(self._results):
            table.add_row(
                plain_line(title, "dim"), *(Text(plain_line(value).plain, justify="right") for value in values)
            )
        table.fixed_columns = 1
        table.focus()

    def action_copy(self) -> None:
        """All of it, with tabs between the columns."""
        names = ("", *(one.model for one in self._results))
        lines = [names, *((title, *values) for title, values in figures_of(self._results))]
        self.app.copy_to_clipboard(plain("\n".join("\t".join(line) for line in lines)).plain)
        self.notify("copied the table", markup=False)

    def action_close(self) -> None:
        self.dismiss(None)


def _is_bare(one: ModelResults) -> bool:
    return one.quantized is None and one.fine_tuned is None and not one.evaluations and not one.trouble


def _loss(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"
