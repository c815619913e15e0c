"""Steps that must not be taken: a loss or gradient that is not finite, a gradient far above those before it."""

from __future__ import annotations

import math
import statistics

from ...schemas.train import GuardSettings
from .errors import Diverged

# Norms whose median a new one is held against, and how many there must be first.
_REMEMBERED = 64
_ENOUGH = 16
# Dynamic loss scaling as in Micikevicius et al., "Mixed Precision Training" (arXiv:1710.03740).
_FIRST_SCALE = 2.0**16
_GROWS_AFTER = 2000
_LEAST_SCALE = 2.0**-10


class Guard:
    """Remembers the norms of the steps that were taken. Raises Diverged after too many that were not."""

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._norms: list[float] = []
        self._in_a_row = 0

    def why_skip(self, loss: float, norm: float) -> str:
        """Empty where the step may be taken."""
        why = self._why(loss, norm)
        if not why:
            self._norms = [*self._norms[1 - _REMEMBERED :], norm]
            self._in_a_row = 0
            return ""
        self._in_a_row += 1
        if self._in_a_row > self._settings.max_skips:
            raise Diverged(f"{self._in_a_row} steps in a row could not be taken, the last because {why}")
        return why

    def _why(self, loss: float, norm: float) -> str:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the gradient's norm is {norm}"
        if self._settings.spike and len(self._norms) >= _ENOUGH:
            usual = statistics.median(self._norms)
            if norm > self._settings.spike * usual:
                return f"the gradient's norm is {norm:.3g}, the median of those before it {usual:.3g}"
        return ""

    def state(self) -> dict[str, object]:
        return {"norms": self._norms, "in_a_row": self._in_a_row}

    def load(self, state: dict[str, object]) -> None:
        norms, in_a_row = state["norms"], state["in_a_row"]
        assert isinstance(norms, list)
        assert isinstance(in_a_row, int)
        self._norms, self._in_a_row = norms, in_a_row


class LossScale:
    """What the loss is multiplied with so that small gradients do not vanish in float16; 1 in other types.

    A step whose gradient overflowed halves it and is not taken, which is no divergence; it doubles after many that
    were.
    """

    def __init__(self, *, is_dynamic: bool) -> None:
        self.is_dynamic = is_dynamic
        self.value = _FIRST_SCALE if is_dynamic else 1.0
        self._since = 0

    def overflowed(self, norm: float) -> bool:
        """Called with each step's norm; whether the step is to be left out and tried with a smaller scale."""
        if not self.is_dynamic:
            return False
        if not math.isfinite(norm):
            self.value /= 2
            self._since = 0
            if self.value < _LEAST_SCALE:
                raise Diverged("gradients overflow float16 however small the loss is made")
            return True
        self._since += 1
        if self._since == _GROWS_AFTER:
            self.value *= 2
            self._since = 0
        return False

    def state(self) -> dict[str, float | int]:
        return {"value": self.value, "since": self._since}

    def load(self, state: dict[str, float | int]) -> None:
        self.value, self._since = float(state["value"]), int(state["since"])
