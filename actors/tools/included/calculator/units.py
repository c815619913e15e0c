"""Units, by pint. It takes a second to load, so it is loaded when the first unit is met.

A unit here is a mapping of pint's canonical names to exponents: `{"meter": 1, "second": -2}`. Conversions are exact
wherever the unit's definition is: an inch is 127/50 cm.
"""

from __future__ import annotations

import functools
import threading
from fractions import Fraction
from typing import Any

from ..optional import need
from .errors import CalculationError

Unit = tuple[tuple[str, Fraction], ...]
"""Sorted pairs of a unit's name and its exponent; empty where there is none."""

NO_UNIT: Unit = ()
_MAX_NAME = 60
# pint's registry makes entries for units with a prefix as it meets them.
_LOCK = threading.RLock()


@functools.cache
def _registry() -> Any:
    pint = need("pint", "tools", "a calculation with units")
    return pint.UnitRegistry(non_int_type=Fraction)


def unit_named(name: str, position: int) -> Unit:
    """Raises CalculationError where nobody knows the unit."""
    if len(name) > _MAX_NAME:
        raise CalculationError("a name that is too long", position)
    with _LOCK:
        registry = _registry()
        try:
            canonical = registry.get_name(name)
        except Exception as error:
            raise _unknown(name, position) from error
    return ((canonical, Fraction(1)),)


def _unknown(name: str, position: int) -> CalculationError:
    from .....runtime.matching import did_you_mean
    from .functions import CONSTANTS, FUNCTIONS

    near = did_you_mean(name, [*FUNCTIONS, *CONSTANTS])
    hint = f"is '{near}' meant?" if near else "names are functions like sqrt, constants like pi, units like km or hour"
    return CalculationError(f"'{name}' is no constant and no unit", position, hint=hint)


def times(x: Unit, y: Unit) -> Unit:
    powers = dict(x)
    for name, exponent in y:
        powers[name] = powers.get(name, Fraction(0)) + exponent
    return tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))


def to_power(x: Unit, exponent: Fraction) -> Unit:
    return tuple((name, power * exponent) for name, power in x) if exponent else NO_UNIT


def is_offset(x: Unit) -> bool:
    """Whether its zero is not where other units of its kind have theirs: °C and °F."""
    with _LOCK:
        definitions = _registry()._units
        return any(not definitions[name].is_multiplicative for name, _ in x)


def conversion(source: Unit, target: Unit, position: int) -> tuple[Fraction, Fraction]:
    """(a, b) such that a value x in `source` is a * x + b in `target`. Raises CalculationError."""
    if source == target:
        return Fraction(1), Fraction(0)
    with _LOCK:
        registry = _registry()
        try:
            zero = registry.convert(Fraction(0), _container(source), _container(target))
            one = registry.convert(Fraction(1), _container(source), _container(target))
        except Exception as error:
            raise CalculationError(
                f"{shown(source) or 'a number without a unit'} does not convert to {shown(target) or 'one without'}",
                position,
                hint="both sides must be of one kind: lengths, times, masses...",
            ) from error
    if not isinstance(zero, Fraction | int) or not isinstance(one, Fraction | int):
        raise CalculationError(f"{shown(source)} is on a scale that is not straight; it does not convert", position)
    return Fraction(one) - Fraction(zero), Fraction(zero)


def _container(unit: Unit) -> Any:
    from pint.util import UnitsContainer

    return UnitsContainer(dict(unit), non_int_type=Fraction)


def shown(unit: Unit) -> str:
    """`kg*m/s^2`, by pint's symbols."""
    with _LOCK:
        symbols = [(_registry().get_symbol(name), exponent) for name, exponent in unit] if unit else []
    above = [_with_power(symbol, exponent) for symbol, exponent in symbols if exponent > 0]
    below = [_with_power(symbol, -exponent) for symbol, exponent in symbols if exponent < 0]
    if not below:
        return "*".join(above)
    under = below[0] if len(below) == 1 else f"({'*'.join(below)})"
    return f"{'*'.join(above) or '1'}/{under}"


def _with_power(symbol: str, exponent: Fraction) -> str:
    if exponent == 1:
        return symbol
    return f"{symbol}^{exponent}" if exponent.denominator == 1 else f"{symbol}^({exponent})"
