"""What whoever answers `Generate` can do beside writing text, so that who asks need not try."""

from __future__ import annotations

from .base import Message, Request
from .serve import GrammarKind


class ModelAbilities(Message, frozen=True, kw_only=True, tag="model.abilities.result"):
    """`grammars`: the kinds that an answer can be held to. `tools`: whether it calls tools that it is offered.

    `address`: whose they are, where several are told of.
    """

    grammars: tuple[GrammarKind, ...]
    tools: bool
    address: str = ""


class GetAbilities(Request[ModelAbilities], frozen=True, tag="model.abilities"):
    """Ask a model's actor, an engine, an upstream or a script, what a `Generate` to it may have."""
