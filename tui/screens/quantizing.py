"""Quantizing a model from the page of models: by which method, into how many bits, and its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...schemas.models import QuantizeModel
from ..widgets.fields_dialog import Field, FieldsDialog

if TYPE_CHECKING:
    from .base import Page

METHODS = (
    ("gptq4", "GPTQ, 4 bits"),
    ("awq4", "AWQ, 4 bits"),
    ("awq+gptq4", "AWQ and GPTQ, 4 bits"),
    ("rtn4", "plain rounding, 4 bits"),
    ("smooth8", "SmoothQuant, 8 bits"),
    ("rtn8", "plain rounding, 8 bits"),
)
SAMPLES = (("16", "16 sequences: quick"), ("64", "64 sequences"), ("128", "128 sequences: slow"))


async def ask_how_to_quantize(page: Page, model: str) -> QuantizeModel | None:
    """None where it was thought better of."""
    fields = [
        Field("method", "Method", "gptq4", METHODS),
        Field("samples", "Calibration", "64", SAMPLES),
        Field("name", "Name", placeholder="the model's with the method behind it"),
    ]
    detail = "It is calibrated on a small text that comes along, by a process of its own on the daemon's machine."
    values = await page.app.push_screen_wait(FieldsDialog(f"Quantize {model}", fields, detail=detail, yes="Quantize"))
    if values is None:
        return None
    method, bits = values["method"][:-1], int(values["method"][-1])
    return QuantizeModel(model=model, name=values["name"], method=method, bits=bits, samples=int(values["samples"]))
