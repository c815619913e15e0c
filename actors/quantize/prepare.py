"""From a request to the work: the model's path, the recipe, and the tokens."""

from __future__ import annotations

import enum
import os
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from ...runtime.errors import UsageError
from ...schemas.quantize import Quantize
from ..models.store import ModelStore
from .calibration import Tokens, draw, read_tokens
from .recipe import Layout, Method, Recipe, fitting_group_size
from .run import Job
from .source import open_source

E = TypeVar("E", bound=enum.StrEnum)


def prepare(request: Quantize, store: ModelStore | None = None) -> tuple[Job, Tokens]:
    """Raises UsageError, NoSuchModel, ModelDamaged, UnsupportedModel, and what reading the data raises; nothing is
    written."""
    out = Path(request.out)
    if os.path.lexists(out):
        raise UsageError(f"{out} is there already", hint="give another place with -o, or remove it first")
    method, layout = _one_of(Method, "method", request.method), _one_of(Layout, "format", request.layout)
    path = (store or ModelStore()).path(request.model)
    recipe = Recipe(
        method=method,
        bits=request.bits,
        group_size=request.group_size or _group_size(path),
        symmetric=request.symmetric,
        layout=layout,
        kv=request.kv,
        alpha=None if request.search_alpha else request.alpha,
        steps=request.steps,
        seed=request.seed,
    )
    token_ids = read_tokens(path, request.data, request.template, seed=request.seed)
    tokens = draw(token_ids, request.data, samples=request.samples, length=request.length, seed=request.seed)
    return Job(model=str(path), out=str(out), recipe=recipe, text=tokens.text, seed=request.seed), tokens


def _group_size(path: Path) -> int:
    with closing(open_source(path)) as source:
        return fitting_group_size(source.config)


def _one_of(kind: type[E], name: str, value: str) -> E:
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"there is no {name} '{value}'", hint=f"choose one of {', '.join(kind)}") from None
