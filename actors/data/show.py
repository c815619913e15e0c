"""Samples for people to look at: their tokens, coloured by what carries loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from rich.console import Console
from rich.text import Text

from .batches import render_record
from .data_file import DataFile, Problem
from .rendering import Rendered, RenderedPair, Renderer

# Neighbouring tokens differ in shade, so that one sees where each ends.
_WITH_LOSS = ("bold green", "bold bright_green")
_WITHOUT = ("dim white", "dim cyan")


def first_samples(file: DataFile, renderer: Renderer, number: int) -> Iterator[Rendered | RenderedPair | Problem]:
    for record in islice(file.records(), number):
        yield render_record(record, file.format, renderer)


def described(rendered: Rendered | RenderedPair) -> dict[str, Any]:
    """The sample as one JSON object; of a pair the chosen answer, with the rejected one beside it."""
    if isinstance(rendered, RenderedPair):
        return {**described(rendered.chosen), "rejected": described(rendered.rejected)}
    return {
        "text": rendered.text,
        "loss_text": rendered.loss_text,
        "num_tokens": rendered.num_tokens,
        "num_loss_tokens": rendered.num_loss_tokens,
    }


def print_sample(title: str, rendered: Rendered | RenderedPair) -> None:
    if isinstance(rendered, RenderedPair):
        print_sample(f"{title}, chosen", rendered.chosen)
        print_sample(f"{title}, rejected", rendered.rejected)
        return
    console = Console(soft_wrap=True, highlight=False)
    counted = f"{rendered.num_tokens} tokens, {rendered.num_loss_tokens} with loss"
    console.print(Text(f"── {title}: {counted}"))
    has_colour = console.color_system is not None
    console.print(coloured(rendered) if has_colour else Text(bracketed(rendered)))


def coloured(rendered: Rendered) -> Text:
    text = Text(rendered.text)
    last = -1
    shade = 0
    for (start, end), has_loss in zip(rendered.offsets.tolist(), rendered.loss_mask.tolist(), strict=True):
        if start < last:
            continue  # another part of the same character
        text.stylize((_WITH_LOSS if has_loss else _WITHOUT)[shade], start, end)
        last, shade = end, 1 - shade
    return text


def bracketed(rendered: Rendered) -> str:
    """For where there is no colour: what carries loss stands between ⟦ and ⟧."""
    pieces: list[str] = []
    at = 0
    for start, end in rendered.loss_spans:
        pieces += [rendered.text[at:start], "⟦", rendered.text[start:end], "⟧"]
        at = end
    return "".join([*pieces, rendered.text[at:]])
