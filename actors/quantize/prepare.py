"""From a request to the work: the model's path, the recipe, and the tokens."""

from __future__ import annotations

import enum
import os
from pathlib import Path
from typing import TypeVar

from ...runtime.errors import UsageError
from ...schemas.quantize import Quantize
from ..models.loading import load_tokenizer
from ..models.store import ModelStore
from .calibration import Tokens, sample
from .recipe import Layout, Method, Recipe
from .run import Job

E = TypeVar("E", bound=enum.StrEnum)


def prepare(request: Quantize, store: ModelStore | None = None) -> tuple[Job, Tokens]:
    """Raises UsageError, NoSuchModel, ModelDamaged, UnsupportedModel; nothing is written."""
    recipe = Recipe(
        method=_one_of(Method, "method", request.method),
        bits=request.bits,
        group_size=request.group_size,
        symmetric=request.symmetric,
        layout=_one_of(Layout, "format", request.layout),
        kv=request.kv,
        alpha=request.alpha,
    )
    out = Path(request.out)
    if os.path.lexists(out):
        raise UsageError(f"{out} is there already", hint="give another place with -o, or remove it first")
    path = (store or ModelStore()).path(request.model)
    tokenizer = load_tokenizer(path)
    data = Path(request.data) if request.data else None
    tokens = sample(tokenizer.encode, data, samples=request.samples, length=request.length, seed=request.seed)
    return Job(model=str(path), out=str(out), recipe=recipe, text=tokens.text, seed=request.seed), tokens


def _one_of(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"there is no {name} '{value}'", hint=f"choose one of {', '.join(kind)}") from None
