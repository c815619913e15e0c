"""What may be called, by name. Each is given the arithmetic, the arguments and the place of the call.

Functions take plain numbers; those that keep a unit (`abs`, `min`, `sum`...) and the angles are told apart by
`Function.units`.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cmp_to_key, reduce
from typing import Any

from .errors import CalculationError
from .limits import MAX_BITS
from .numbers import Arithmetic, Real

# Beyond, mpmath works out as many digits of pi or of ln 2 as the argument has.
_MAX_ARGUMENT = 10**30
_MAX_MODULUS_BITS = 8192


class Units(enum.Enum):
    """What a function does with units."""

    NONE = "none"
    """It takes numbers without a unit."""

    KEPT = "kept"
    """All arguments have one kind of unit, and so has the result."""

    ANGLE = "angle"
    """It takes an angle: a number is in radians."""


Work = Callable[[Arithmetic, "tuple[Real, ...]", int], Real]


@dataclass(frozen=True, slots=True)
class Function:
    work: Work
    least: int
    most: int
    units: Units = Units.NONE


def _approximate(name: str, *, domain: Callable[[Real], bool] | None = None, says: str = "") -> Work:
    """A function of one number by mpmath."""

    def work(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
        if domain is not None and not domain(args[0]):
            raise CalculationError(f"{name} takes {says}", position)
        if abs(args[0]) > _MAX_ARGUMENT and name not in ("log", "log10", "asinh", "acosh", "atan"):
            raise CalculationError(f"{name} takes numbers up to 1e30", position)
        x = a.approximate(args[0])
        return a.checked(getattr(a.context, name)(x), position)

    return work


def _within_one(x: Real) -> bool:
    return -1 <= x <= 1


def _positive(x: Real) -> bool:
    return x > 0


def _whole(x: Real, what: str, position: int) -> int:
    if not isinstance(x, Fraction) or x.denominator != 1:
        raise CalculationError(f"{what} takes whole numbers", position)
    return x.numerator


def _log(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    """log(x) is to the base 10, log(x, b) to the base b; exact where both are powers of one number."""
    x, *rest = args
    base = rest[0] if rest else Fraction(10)
    if x <= 0 or base <= 0 or base == 1:
        raise CalculationError("log takes a positive number, and a positive base other than 1", position)
    result = a.context.log(a.approximate(x)) / a.context.log(a.approximate(base))
    whole = Fraction(int(a.context.nint(result)))
    if isinstance(x, Fraction) and isinstance(base, Fraction) and abs(whole) < 10_000:
        if a.power(base, whole, position) == x:
            return whole
    return a.checked(result, position)


def _to_base(base: int) -> Work:
    return lambda a, args, position: _log(a, (args[0], Fraction(base)), position)


def _sum(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    return reduce(lambda x, y: a.add(x, y, position), args)


def _mean(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    return a.divide(_sum(a, args, position), Fraction(len(args)), position)


def _median(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    ordered = sorted(args, key=cmp_to_key(a.compare))
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else _mean(a, (ordered[middle - 1], ordered[middle]), position)


def _stdev(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    """Of a sample: by the number of values less one."""
    mean = _mean(a, args, position)
    squares = tuple(a.power(a.add(x, -mean, position), Fraction(2), position) for x in args)
    return a.root(a.divide(_sum(a, squares, position), Fraction(len(args) - 1), position), 2, position)


def factorial(a: Arithmetic, x: Real, position: int) -> Fraction:
    n = _whole(x, "a factorial", position)
    if n < 0:
        raise CalculationError("a factorial of a negative number", position)
    if n > 3 and n * math.log2(n / math.e) > MAX_BITS:
        raise CalculationError(
            f"{n}! is too large to work out exactly", position, hint="gamma(n + 1) gives its first digits"
        )
    return Fraction(math.factorial(n))


def _gamma(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    if args[0] > 10**15 or args[0] < -(10**4):
        raise CalculationError("gamma takes numbers from -1e4 to 1e15", position)
    if args[0] <= 0 and a.floor(args[0], position) == args[0]:
        raise CalculationError("gamma has no value at zero and at negative whole numbers", position)
    return a.checked(a.context.gamma(a.approximate(args[0])), position)


def _choose(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    n, k = (_whole(x, "choose", position) for x in args)
    if not 0 <= k <= n:
        raise CalculationError("choose(n, k) takes 0 <= k <= n", position)
    few = min(k, n - k)
    if few * (n.bit_length() - max(few.bit_length() - 2, 0)) > MAX_BITS:
        raise CalculationError("the number of choices is too large to work out", position)
    return Fraction(math.comb(n, k))


def _arrange(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    n, k = (_whole(x, "arrange", position) for x in args)
    if not 0 <= k <= n:
        raise CalculationError("arrange(n, k) takes 0 <= k <= n", position)
    if k * n.bit_length() > MAX_BITS:
        raise CalculationError("the number of arrangements is too large to work out", position)
    return Fraction(math.perm(n, k))


def _powmod(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    base, exponent, modulus = (_whole(x, "powmod", position) for x in args)
    if modulus == 0 or max(exponent.bit_length(), modulus.bit_length()) > _MAX_MODULUS_BITS:
        raise CalculationError(f"powmod takes an exponent and a modulus of up to {_MAX_MODULUS_BITS} bits", position)
    try:
        return Fraction(pow(base, exponent, modulus))
    except ValueError:
        raise CalculationError("there is no inverse: the base and the modulus share a factor", position) from None


def _of_whole(name: str, work: Callable[..., int]) -> Work:
    return lambda a, args, position: Fraction(work(*(_whole(x, name, position) for x in args)))


def _lcm(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    numbers = [_whole(x, "lcm", position) for x in args]
    if sum(n.bit_length() for n in numbers) > MAX_BITS:
        raise CalculationError("the least common multiple is too large to work out", position)
    return Fraction(math.lcm(*numbers))


def _round(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    x, *rest = args
    places = _whole(rest[0], "round's second argument", position) if rest else 0
    if abs(places) > 1000:
        raise CalculationError("round takes up to 1000 places", position)
    return a.round(x, places, position)


def _root(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    return a.root(args[0], _whole(args[1], "root's degree", position), position)


def _sign(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    return Fraction((args[0] > 0) - (args[0] < 0))


def _truncate(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    x = args[0]
    return a.floor(x, position) if x >= 0 else -a.floor(-x, position)


def _atan2(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    return a.checked(a.context.atan2(a.approximate(args[0]), a.approximate(args[1])), position)


def _hypot(a: Arithmetic, args: tuple[Real, ...], position: int) -> Real:
    squares = tuple(a.power(x, Fraction(2), position) for x in args)
    return a.root(_sum(a, squares, position), 2, position)


_ANY = 1000

FUNCTIONS: dict[str, Function] = {
    "abs": Function(lambda a, args, position: abs(args[0]), 1, 1, Units.KEPT),
    "floor": Function(lambda a, args, position: a.floor(args[0], position), 1, 1, Units.KEPT),
    "ceil": Function(lambda a, args, position: -a.floor(-args[0], position), 1, 1, Units.KEPT),
    "trunc": Function(_truncate, 1, 1, Units.KEPT),
    "round": Function(_round, 1, 2),
    "sign": Function(_sign, 1, 1),
    "min": Function(lambda a, args, position: min(args, key=cmp_to_key(a.compare)), 1, _ANY, Units.KEPT),
    "max": Function(lambda a, args, position: max(args, key=cmp_to_key(a.compare)), 1, _ANY, Units.KEPT),
    "sum": Function(_sum, 1, _ANY, Units.KEPT),
    "mean": Function(_mean, 1, _ANY, Units.KEPT),
    "average": Function(_mean, 1, _ANY, Units.KEPT),
    "median": Function(_median, 1, _ANY, Units.KEPT),
    "stdev": Function(_stdev, 2, _ANY, Units.KEPT),
    "hypot": Function(_hypot, 1, _ANY, Units.KEPT),
    "approx": Function(lambda a, args, position: a.approximate(args[0]), 1, 1, Units.KEPT),
    "sqrt": Function(lambda a, args, position: a.root(args[0], 2, position), 1, 1),
    "cbrt": Function(lambda a, args, position: a.root(args[0], 3, position), 1, 1),
    "root": Function(_root, 2, 2),
    "exp": Function(_approximate("exp"), 1, 1),
    "ln": Function(_approximate("log", domain=_positive, says="a positive number"), 1, 1),
    "log": Function(_log, 1, 2),
    "log10": Function(_to_base(10), 1, 1),
    "log2": Function(_to_base(2), 1, 1),
    "sin": Function(_approximate("sin"), 1, 1, Units.ANGLE),
    "cos": Function(_approximate("cos"), 1, 1, Units.ANGLE),
    "tan": Function(_approximate("tan"), 1, 1, Units.ANGLE),
    "asin": Function(_approximate("asin", domain=_within_one, says="numbers from -1 to 1"), 1, 1),
    "acos": Function(_approximate("acos", domain=_within_one, says="numbers from -1 to 1"), 1, 1),
    "atan": Function(_approximate("atan"), 1, 1),
    "atan2": Function(_atan2, 2, 2),
    "sinh": Function(_approximate("sinh"), 1, 1),
    "cosh": Function(_approximate("cosh"), 1, 1),
    "tanh": Function(_approximate("tanh"), 1, 1),
    "asinh": Function(_approximate("asinh"), 1, 1),
    "acosh": Function(_approximate("acosh", domain=lambda x: x >= 1, says="numbers from 1"), 1, 1),
    "atanh": Function(_approximate("atanh", domain=lambda x: -1 < x < 1, says="numbers between -1 and 1"), 1, 1),
    "gamma": Function(_gamma, 1, 1),
    "factorial": Function(lambda a, args, position: factorial(a, args[0], position), 1, 1),
    "choose": Function(_choose, 2, 2),
    "arrange": Function(_arrange, 2, 2),
    "gcd": Function(_of_whole("gcd", math.gcd), 1, _ANY),
    "lcm": Function(_lcm, 1, _ANY),
    "powmod": Function(_powmod, 3, 3),
}

CONSTANTS: dict[str, Callable[[Any], Any]] = {
    "pi": lambda context: +context.pi,
    "π": lambda context: +context.pi,
    "tau": lambda context: 2 * context.pi,
    "e": lambda context: +context.e,
    "phi": lambda context: +context.phi,
}
