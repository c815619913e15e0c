"""What a calculator says when it cannot go on, and where in the expression that is."""

from __future__ import annotations

from ...errors import ToolError

# Characters of the expression that an error shows on each side of the place.
_CONTEXT = 30


class CalculationError(ToolError):
    """An expression that is not understood, or has no value. `position`: the index of the character, from 0."""

    code = "tool.calculator"

    def __init__(self, message: str, position: int, expression: str = "", *, hint: str = "") -> None:
        super().__init__(_placed(message, position, expression), hint=hint)
        self.reason = message
        self.position = position

    def within(self, expression: str) -> CalculationError:
        """The same with the piece of the expression that it is about."""
        return CalculationError(self.reason, self.position, expression, hint=self.hint)


def _placed(message: str, position: int, expression: str) -> str:
    if not expression:
        return message
    start = max(0, position - _CONTEXT)
    before, after = expression[start:position], expression[position : position + _CONTEXT]
    return f"{message} (at character {position + 1}: {before}⟪here⟫{after})"
