"""The value of a tree: numbers with units, or true and false."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from . import units
from .errors import CalculationError
from .functions import CONSTANTS, FUNCTIONS, Units, factorial
from .limits import MAX_SECONDS
from .numbers import Arithmetic, Real
from .syntax import Binary, Call, Convert, Name, Node, Number, Unary
from .units import NO_UNIT, Unit

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Quantity:
    number: Real
    unit: Unit = NO_UNIT


class Evaluator:
    """Works out one expression. `approximately`: decimal digits of what is not exact."""

    def __init__(self, digits: int) -> None:
        self._arithmetic = Arithmetic(digits)
        self._deadline = time.monotonic() + MAX_SECONDS

    @property
    def arithmetic(self) -> Arithmetic:
        return self._arithmetic

    def whole(self, node: Node) -> Quantity | bool:
        """The value of an expression. Raises CalculationError."""
        if isinstance(node, Binary) and node.operator in _COMPARE:
            left, right = self._value(node.left), self._value(node.right)
            right = self._as(right, left.unit, node.position)
            return _COMPARE[node.operator](self._arithmetic.compare(left.number, right.number), 0)
        return self._value(node)

    def _value(self, node: Node) -> Quantity:
        if time.monotonic() > self._deadline:
            raise CalculationError(f"the calculation takes longer than {MAX_SECONDS:g} s", node.position)
        match node:
            case Number():
                return Quantity(node.value)
            case Name():
                return self._named(node)
            case Unary():
                return self._unary(node)
            case Binary():
                return self._binary(node)
            case Call():
                return self._call(node)
            case Convert():
                return self._convert(node)

    def _named(self, node: Name) -> Quantity:
        constant = CONSTANTS.get(node.text)
        if constant is not None:
            return Quantity(constant(self._arithmetic.context))
        return Quantity(Fraction(1), units.unit_named(node.text, node.position))

    def _unary(self, node: Unary) -> Quantity:
        operand = self._value(node.operand)
        match node.operator:
            case "-":
                return Quantity(-operand.number, operand.unit)
            case "!":
                return Quantity(factorial(self._arithmetic, self._plain(operand, node.position), node.position))
            case "%":
                return Quantity(self._arithmetic.divide(operand.number, Fraction(100), node.position), operand.unit)
        return operand

    def _binary(self, node: Binary) -> Quantity:
        work = self._arithmetic
        left = self._value(node.left)
        if node.operator in ("+", "-"):
            return self._sum(left, node)
        right = self._value(node.right)
        match node.operator:
            case "juxtaposed" if isinstance(node.left, Number) and isinstance(node.right, Name):
                # A reading: 20 °C is on the scale, not twenty times one degree.
                return Quantity(work.multiply(left.number, right.number, node.position), right.unit)
            case "*" | "juxtaposed":
                self._refuse_offset(left, right, node.position)
                number = work.multiply(left.number, right.number, node.position)
                return Quantity(number, units.times(left.unit, right.unit))
            case "/":
                self._refuse_offset(left, right, node.position)
                number = work.divide(left.number, right.number, node.position)
                return Quantity(number, units.times(left.unit, units.to_power(right.unit, Fraction(-1))))
            case "//":
                right = self._as(right, left.unit, node.position)
                return Quantity(work.floor_divide(left.number, right.number, node.position))
            case "mod":
                right = self._as(right, left.unit, node.position)
                return Quantity(work.remainder(left.number, right.number, node.position), left.unit)
            case "^":
                return self._power(left, right, node.position)
        raise CalculationError("a comparison may only stand for itself", node.position)

    def _sum(self, left: Quantity, node: Binary) -> Quantity:
        work = self._arithmetic
        if isinstance(node.right, Unary) and node.right.operator == "%":
            share = work.multiply(left.number, self._value(node.right).number, node.position)
            right = Quantity(share, left.unit)
        else:
            right = self._as(self._value(node.right), left.unit, node.position)
        if left.unit and units.is_offset(left.unit):
            raise CalculationError(
                "readings of a temperature do not add up", node.position, hint="convert to kelvin first: (20 degC to K)"
            )
        number = right.number if node.operator == "+" else -right.number
        return Quantity(work.add(left.number, number, node.position), left.unit)

    def _power(self, left: Quantity, right: Quantity, position: int) -> Quantity:
        exponent = self._plain(right, position)
        number = self._arithmetic.power(left.number, exponent, position)
        if not left.unit:
            return Quantity(number)
        self._refuse_offset(left, left, position)
        if not isinstance(exponent, Fraction) or max(abs(exponent.numerator), exponent.denominator) > 100:
            raise CalculationError("a unit to a power that is no simple fraction", position)
        return Quantity(number, units.to_power(left.unit, exponent))

    def _call(self, node: Call) -> Quantity:
        function = FUNCTIONS.get(node.function)
        if function is None:
            raise self._no_function(node)
        if not function.least <= len(node.arguments) <= function.most:
            raise CalculationError(_wants(node.function, function.least, function.most), node.position)
        values = [self._value(argument) for argument in node.arguments]
        unit = NO_UNIT
        if function.units is Units.KEPT:
            unit = values[0].unit
            numbers = tuple(self._as(value, unit, node.position).number for value in values)
        elif function.units is Units.ANGLE:
            numbers = tuple(self._in_radians(value, node.position) for value in values)
        elif node.function in ("sqrt", "cbrt") and values[0].unit:
            self._refuse_offset(values[0], values[0], node.position)
            unit = units.to_power(values[0].unit, Fraction(1, 2 if node.function == "sqrt" else 3))
            numbers = (values[0].number,)
        elif node.function == "round":
            unit = values[0].unit
            numbers = (values[0].number, *(self._plain(value, node.position) for value in values[1:]))
        else:
            numbers = tuple(self._plain(value, node.position) for value in values)
        return Quantity(function.work(self._arithmetic, numbers, node.position), unit)

    def _convert(self, node: Convert) -> Quantity:
        target = self._value(node.unit)
        if target.number != 1 or not target.unit:
            raise CalculationError("what follows `to` must be a unit", node.unit.position)
        return self._as(self._value(node.value), target.unit, node.position)

    # Units.

    def _as(self, value: Quantity, unit: Unit, position: int) -> Quantity:
        """The value in that unit."""
        if value.unit == unit:
            return value
        factor, offset = units.conversion(value.unit, unit, position)
        work = self._arithmetic
        return Quantity(work.add(work.multiply(value.number, factor, position), offset, position), unit)

    def _plain(self, value: Quantity, position: int) -> Real:
        """The number of a value whose units cancel. Raises CalculationError."""
        return self._as(value, NO_UNIT, position).number

    def _in_radians(self, value: Quantity, position: int) -> Real:
        """An angle in degrees is worked out with this calculation's own pi, which may have more digits than pint's."""
        if value.unit == (("degree", Fraction(1)),):
            context = self._arithmetic.context
            return self._arithmetic.approximate(value.number) * context.pi / 180
        return self._plain(value, position)

    def _refuse_offset(self, left: Quantity, right: Quantity, position: int) -> None:
        if any(value.unit and units.is_offset(value.unit) for value in (left, right)):
            raise CalculationError(
                "a reading of a temperature does not multiply", position, hint="convert to kelvin first: (20 degC to K)"
            )

    def _no_function(self, node: Call) -> CalculationError:
        from .....runtime.matching import did_you_mean

        near = did_you_mean(node.function, FUNCTIONS)
        hint = f"is '{near}' meant?" if near else f"there are: {', '.join(FUNCTIONS)}"
        return CalculationError(f"there is no function '{node.function}'", node.position, hint=hint)


def _wants(name: str, least: int, most: int) -> str:
    if least == most:
        return f"{name} takes {least} argument{'s' if least > 1 else ''}"
    return f"{name} takes {least} to {most} arguments" if most < 1000 else f"{name} takes {least} arguments or more"
