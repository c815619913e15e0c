"""The report of a quantized model: a JSON file and a plot in its folder, and a table for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...runtime.files import write_private
from ...runtime.plot import Chart, Series, svg
from ...schemas.quantize import QuantizeReport
from ..models.results import REPORT

if TYPE_CHECKING:
    from rich.console import RenderableType

PLOT = "report.svg"


def write_report(folder: Path, report: QuantizeReport) -> None:
    write_private(folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    write_private(folder / PLOT, plot(report))


def plot(report: QuantizeReport) -> str:
    """Size and perplexity before and after, and what each product of each layer lost."""
    products = dict.fromkeys(error.product for error in report.errors)
    lost = tuple(
        Series(name, tuple((e.layer, 100 * e.share) for e in report.errors if e.product == name)) for name in products
    )
    size = Series("MiB", ((0, report.bytes_before / (1 << 20)), (1, report.bytes_after / (1 << 20))))
    perplexity = Series("perplexity", ((0, report.perplexity_before), (1, report.perplexity_after)))
    charts = (
        Chart("size (MiB)", "before (0), after (1)", (size,)),
        Chart("perplexity", "before (0), after (1)", (perplexity,)),
        Chart("outputs' mean square lost (%)", "layer", lost),
    )
    return svg(charts, f"{Path(report.model).name}, {report.method}, {report.bits} bits")


def table(report: QuantizeReport) -> RenderableType:
    from rich.table import Table

    grid = f"groups of {report.group_size}" if report.group_size else "a scale for each output"
    title = f"{report.method}, {report.bits} bits, {grid}, {'symmetric' if report.symmetric else 'with zero points'}"
    shown = Table("", title=title, title_justify="left")
    for heading in ("before", "after"):
        shown.add_column(heading, justify="right")
    shown.add_row("size (MiB)", *(f"{size / (1 << 20):,.1f}" for size in (report.bytes_before, report.bytes_after)))
    shown.add_row("bits a weight, embeddings too", "", f"{report.bits_per_weight:.2f}")
    shown.add_row("perplexity", f"{report.perplexity_before:.3f}", f"{report.perplexity_after:.3f}")
    shown.add_row("same next token", "", f"{report.token_agreement:.1%}")
    return shown
