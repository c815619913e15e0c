"""Numbers: exact fractions as long as the operation allows, then floating point of the precision asked for.

Exact ones are `fractions.Fraction`; approximate ones are mpmath's `mpf` in a context of one calculation's own, so
that two calculations at once do not share a precision. Every operation estimates its result's size before it begins.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from .errors import CalculationError
from .limits import MAX_BITS, MAX_MAGNITUDE

Real = Fraction | Any
"""A Fraction, or an `mpf` of the calculation's context, whose class mpmath makes at run time."""

_GUARD_DIGITS = 10


class Arithmetic:
    """The arithmetic of one calculation. `position` in every method is the place that an error names."""

    def __init__(self, digits: int) -> None:
        from mpmath.ctx_mp import MPContext

        self.context = MPContext()
        self.context.dps = digits + _GUARD_DIGITS
        self.digits = digits

    def approximate(self, x: Real) -> Any:
        """`x` as an mpf, rounded to the context's precision."""
        if isinstance(x, Fraction):
            return self.context.mpf(x.numerator) / x.denominator
        return x

    def checked(self, x: Any, position: int) -> Real:
        """What an mpmath function gave: refused where it is not a finite real number of a size we can go on with."""
        if isinstance(x, Fraction):
            return x
        if not isinstance(x, self.context.mpf):
            raise CalculationError("the result is not a real number", position)
        if self.context.isnan(x) or self.context.isinf(x):
            raise CalculationError("the result is not a finite number", position)
        if x and abs(self.context.mag(x)) > MAX_MAGNITUDE:
            raise CalculationError("the result is too large or too small even to approximate", position)
        return x

    def compare(self, x: Real, y: Real) -> int:
        """-1, 0 or 1. Approximate numbers are equal that agree to the digits asked for: the guard digits differ."""
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return (x > y) - (x < y)
        x, y = self.approximate(x), self.approximate(y)
        if abs(x - y) <= max(abs(x), abs(y)) * self.context.mpf(10) ** -self.digits:
            return 0
        return 1 if x > y else -1

    def add(self, x: Real, y: Real, position: int) -> Real:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            self._refuse_bits(
                max(_bits(x) + y.denominator.bit_length(), _bits(y) + x.denominator.bit_length()), position
            )
            return x + y
        return self.checked(self.approximate(x) + self.approximate(y), position)

    def multiply(self, x: Real, y: Real, position: int) -> Real:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            self._refuse_bits(
                max(
                    x.numerator.bit_length() + y.numerator.bit_length(),
                    x.denominator.bit_length() + y.denominator.bit_length(),
                ),
                position,
            )
            return x * y
        return self.checked(self.approximate(x) * self.approximate(y), position)

    def divide(self, x: Real, y: Real, position: int) -> Real:
        if not y:
            raise CalculationError("division by zero", position)
        if isinstance(y, Fraction):
            return self.multiply(x, 1 / y, position)
        return self.checked(self.approximate(x) / y, position)

    def floor_divide(self, x: Real, y: Real, position: int) -> Real:
        return self.floor(self.divide(x, y, position), position)

    def remainder(self, x: Real, y: Real, position: int) -> Real:
        """x - y * floor(x / y): the sign is the divisor's."""
        whole = self.floor_divide(x, y, position)
        return self.add(x, self.multiply(-y, whole, position), position)

    def floor(self, x: Real, position: int) -> Fraction:
        return Fraction(math.floor(x)) if isinstance(x, Fraction) else self._whole(self.context.floor(x), position)

    def round(self, x: Real, places: int, position: int) -> Real:
        """Half away from zero, as people round; exact for exact numbers."""
        scale = self.power(Fraction(10), Fraction(places), position)
        scaled = self.multiply(x, scale, position)
        half = Fraction(1, 2) if scaled >= 0 else Fraction(-1, 2)
        moved = self.add(scaled, half, position)
        whole = self.floor(moved, position) if moved >= 0 else -self.floor(-moved, position)
        return self.divide(whole, scale, position)

    def power(self, x: Real, y: Real, position: int) -> Real:
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            if y.denominator == 1:
                return self._whole_power(x, y.numerator, position)
            root = _exact_root(x, y.denominator)
            if root is not None:
                return self._whole_power(root, y.numerator, position)
        if x < 0 and isinstance(y, Fraction) and y.denominator == 1:
            size = self._approximate_power(-x, self.approximate(y), position)
            return -size if y.numerator % 2 else size
        if x < 0:
            raise CalculationError(
                "a negative number to a power that is not whole is no real number",
                position,
                hint="cbrt(x) and root(x, n) give the real root of odd degree",
            )
        if not x:
            if y <= 0:
                raise CalculationError("zero to a power that is not positive", position)
            return Fraction(0)
        return self._approximate_power(self.approximate(x), self.approximate(y), position)

    def root(self, x: Real, degree: int, position: int) -> Real:
        """The real root: of a negative number where `degree` is odd."""
        if degree < 1:
            raise CalculationError("the degree of a root must be 1 or more", position)
        if x < 0:
            if degree % 2 == 0:
                raise CalculationError("an even root of a negative number is no real number", position)
            return -self.root(-x, degree, position)
        return self.power(x, Fraction(1, degree), position)

    def _whole_power(self, x: Fraction, exponent: int, position: int) -> Fraction:
        if not x and exponent < 0:
            raise CalculationError("zero to a negative power", position)
        if x in (0, 1, -1):
            return x ** (exponent % 2 if x == -1 else min(abs(exponent), 1))
        # (n bits)^e has more than (n - 1) * e bits, so what passes stays below twice the limit.
        size = (max(_bits(x), 2) - 1) * abs(exponent)
        if size > MAX_BITS:
            digits = int(size * math.log10(2)) if size < 1 << 60 else 0
            about = f"it has at least {digits:,} digits" if digits else "it has more digits than can be counted here"
            raise CalculationError(
                f"the power is too large to work out: {about}",
                position,
                hint="approx(x) ^ y gives its first digits; powmod(x, y, m) its remainder",
            )
        return x**exponent

    def _approximate_power(self, x: Any, y: Any, position: int) -> Real:
        log2 = self.context.log(x, 2) * y
        if abs(log2) > MAX_MAGNITUDE:
            raise CalculationError("the power is too large or too small even to approximate", position)
        # What the exponent's size takes from the precision is given back.
        with self.context.extraprec(max(0, self.context.mag(log2)) if log2 else 0):
            return self.checked(self.context.power(x, y), position)

    def _whole(self, x: Any, position: int) -> Fraction:
        if x and self.context.mag(x) > MAX_BITS:
            raise CalculationError("too large to be a whole number here", position)
        return Fraction(int(x))

    def _refuse_bits(self, bits: int, position: int) -> None:
        if bits > MAX_BITS + 64:
            raise CalculationError(
                f"an exact number of more than {int(MAX_BITS * math.log10(2)):,} digits",
                position,
                hint="approx(x) goes on with the first digits only",
            )


def _bits(x: Fraction) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _exact_root(x: Fraction, degree: int) -> Fraction | None:
    """The root of `x` >= 0 where it is a fraction."""
    if x < 0 or degree > 64:
        return None
    above, below = _whole_root(x.numerator, degree), _whole_root(x.denominator, degree)
    return None if above is None or below is None else Fraction(above, below)


def _whole_root(n: int, degree: int) -> int | None:
    if degree == 2:
        root = math.isqrt(n)
        return root if root * root == n else None
    low, high = 0, 1 << (n.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < n:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == n else None
