"""From text to an answer."""

from __future__ import annotations

import decimal
import math
from dataclasses import dataclass
from fractions import Fraction

from . import units
from .errors import CalculationError
from .evaluate import Evaluator, Quantity
from .limits import MAX_PRECISION, MAX_SHOWN_DIGITS
from .numbers import Arithmetic, Real
from .parser import parse

DEFAULT_DIGITS = 20
# A fraction whose decimals end within these is shown as decimals alone.
_MAX_DECIMALS = 50


@dataclass(frozen=True, slots=True)
class Calculation:
    """`value`: digits, or `true` or `false`. `exact`: whether these are all the digits there are.

    `fraction`: an exact value whose decimals never end, as `2/3`. `unit`: what `value` counts.
    """

    value: str
    exact: bool
    fraction: str = ""
    unit: str = ""

    def __str__(self) -> str:
        text = f"{'' if self.exact else '≈ '}{self.value}"
        if self.fraction:
            text = f"{self.fraction} {text}"
        return f"{text} {self.unit}".rstrip()


def calculate(expression: str, digits: int = DEFAULT_DIGITS) -> Calculation:
    """The value of `expression`; `digits` significant ones where it is not exact. Raises CalculationError."""
    if not 1 <= digits <= MAX_PRECISION:
        raise CalculationError(f"digits must be from 1 to {MAX_PRECISION}", 0)
    try:
        evaluator = Evaluator(digits)
        value = evaluator.whole(parse(expression))
    except CalculationError as error:
        raise error.within(expression) from error.__cause__
    if isinstance(value, bool):
        return Calculation("true" if value else "false", True)
    return _shown(value, evaluator.arithmetic)


def _shown(value: Quantity, arithmetic: Arithmetic) -> Calculation:
    unit = units.shown(value.unit)
    number = value.number
    if not isinstance(number, Fraction):
        return Calculation(_approximate_digits(number, arithmetic), False, unit=unit)
    decimals = _num_decimals(number)
    if decimals is not None:
        digits = _decimal_digits(number, decimals)
        if len(digits) <= MAX_SHOWN_DIGITS:
            return Calculation(digits, True, unit=unit)
        return Calculation(_approximate_digits(number, arithmetic), False, unit=unit)
    above, below = _whole_digits(number.numerator), _whole_digits(number.denominator)
    fraction = f"{above}/{below}" if len(above) + len(below) <= 4 * arithmetic.digits else ""
    return Calculation(_approximate_digits(number, arithmetic), False, fraction, unit)


def _approximate_digits(x: Real, arithmetic: Arithmetic) -> str:
    context = arithmetic.context
    return str(context.nstr(arithmetic.approximate(x), arithmetic.digits, strip_zeros=True)).removesuffix(".0")


def _num_decimals(x: Fraction) -> int | None:
    """How many decimals the number has, or None where they do not end soon."""
    rest, twos, fives = x.denominator, 0, 0
    while rest % 2 == 0 and twos <= _MAX_DECIMALS:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0 and fives <= _MAX_DECIMALS:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None


def _decimal_digits(x: Fraction, decimals: int) -> str:
    if decimals == 0:
        return _whole_digits(x.numerator)
    scaled = abs(x.numerator) * 10**decimals // x.denominator
    digits = _whole_digits(scaled).rjust(decimals + 1, "0")
    return f"{'-' if x < 0 else ''}{digits[:-decimals]}.{digits[-decimals:]}"


def _whole_digits(n: int) -> str:
    """All digits. `str` refuses more than 4300, since its time is quadratic; `decimal` is not, and ours are bounded."""
    if n.bit_length() < 14_000:
        return str(n)
    with decimal.localcontext() as context:
        context.prec = int(n.bit_length() * math.log10(2)) + 2
        return format(decimal.Decimal(n), "f")
