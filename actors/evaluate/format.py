"""What a format of samples is: how it is told, read, and asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .fields import Value
from .question import Kind, Question


@dataclass(frozen=True)
class Format:
    """`recognises` looks at a record's fields, `read` makes a question of it or raises Unfit. `by_length`: whether the
    accuracy by bytes of the choice says something. `number`: answers are compared as numbers. `stop`, `max_tokens`: of
    an answer outside a chat. `in_chat`: whether it can be asked through a chat template."""

    name: str
    kind: Kind
    recognises: Callable[[Value], bool]
    read: Callable[[Value], Question]
    by_length: bool = True
    number: bool = False
    stop: tuple[str, ...] = ()
    max_tokens: int = 0
    in_chat: bool = True
