"""An expression as tokens, each with its place."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from .errors import CalculationError


class Kind(enum.Enum):
    NUMBER = "number"
    NAME = "name"
    OPERATOR = "operator"
    END = "end"


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    text: str
    position: int

    def __str__(self) -> str:
        return f"'{self.text}'" if self.text else "the end"


_NUMBER = re.compile(
    r"0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][+-]?\d+(?![\w.]))?",
    re.ASCII,
)
# Letters of any alphabet, signs that units begin with (°C, µm, Ω are letters or these), then digits too.
_NAME = re.compile(r"[^\W\d]\w*|°[^\W\d]*|[$€£]")
_OPERATORS = ("->", "**", "//", "<=", ">=", "==", "!=", "+", "-", "*", "/", "%", "^", "!", "(", ")", ",", "<", ">", "=")
# What people and models paste: typographic signs, and their plain forms.
_SAME = {"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "→": "->", "≤": "<=", "≥": ">=", "≠": "!="}


def tokens_of(expression: str) -> list[Token]:
    """All tokens and an END. Raises CalculationError at the first character that begins none."""
    found: list[Token] = []
    position = 0
    while position < len(expression):
        if expression[position].isspace():
            position += 1
            continue
        token = _token_at(expression, position)
        found.append(token)
        position += 1 if expression[position] in _SAME else len(token.text)
    found.append(Token(Kind.END, "", len(expression)))
    return found


def _token_at(expression: str, position: int) -> Token:
    number = _NUMBER.match(expression, position)
    if number is not None:
        return Token(Kind.NUMBER, number.group(), position)
    same = _SAME.get(expression[position])
    if same is not None:
        return Token(Kind.OPERATOR, same, position)
    for operator in _OPERATORS:
        if expression.startswith(operator, position):
            return Token(Kind.OPERATOR, operator, position)
    name = _NAME.match(expression, position)
    if name is not None:
        return Token(Kind.NAME, name.group(), position)
    raise CalculationError(f"'{expression[position]}' means nothing here", position)
