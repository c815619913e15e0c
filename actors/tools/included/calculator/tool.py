"""The tool `calculator`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ...outcome import Reply
from ...tool import tool
from .calculate import DEFAULT_DIGITS, Calculation
from .calculate import calculate as _calculate
from .limits import MAX_LENGTH, MAX_PRECISION


@tool(read_only=True, idempotent=True, open_world=False, timeout=30.0, version="1", tags=("mathematics", "units"))
def calculator(
    expression: Annotated[str, msgspec.Meta(max_length=MAX_LENGTH)],
    digits: Annotated[int, msgspec.Meta(ge=1, le=MAX_PRECISION)] = DEFAULT_DIGITS,
) -> Calculation:
    """Work out an expression: exact arithmetic of any size, functions, percentages, and units.

    Operators: + - * / // mod ^ ! and comparisons. Functions: sqrt cbrt root exp ln log log2 log10 sin cos tan asin acos
    atan atan2 sinh cosh tanh abs floor ceil round min max sum mean median stdev gcd lcm choose arrange factorial gamma
    powmod hypot. Constants: pi e tau phi. Angles are in radians unless they have a unit: sin(30 deg). `100 + 10%` is
    110. Units convert with `to`: `5 km/h to m/s`, `20 degC to degF`, `3 ft + 2 in to cm`.

    Args:
        expression: What to work out, for example 2^100 mod 7, 15% of 80, or 60 mph * 45 min to km.
        digits: Significant digits of a result that is not exact.
    """
    found = _calculate(expression, digits)
    # The annotation tells what the value is; the text is what a model reads.
    return Reply(found, str(found))  # pyright: ignore[reportReturnType]
