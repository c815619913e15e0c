"""The calculator against Python's own fractions, and against expressions that would never end."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.tools.errors import ToolArguments
from callboard.actors.tools.included.calculator.calculate import Calculation, calculate
from callboard.actors.tools.included.calculator.errors import CalculationError
from callboard.actors.tools.included.calculator.limits import MAX_SECONDS
from callboard.actors.tools.included.calculator.tool import calculator

_WHOLE = st.integers(-(10**30), 10**30)


def _fraction(found: Calculation) -> Fraction:
    assert found.exact or found.fraction
    return Fraction(found.fraction or found.value)


@st.composite
def _expressions(draw: st.DrawFn, depth: int = 4) -> tuple[str, Fraction]:
    """An expression and its value, worked out beside it."""
    if depth == 0 or draw(st.booleans()):
        n = draw(st.integers(0, 10**9))
        places = draw(st.integers(0, 6))
        return (f"{n}e-{places}" if places else str(n)), Fraction(n, 10**places)
    left, x = draw(_expressions(depth - 1))
    right, y = draw(_expressions(depth - 1))
    match draw(st.sampled_from("+-*/^n")):
        case "+":
            return f"({left} + {right})", x + y
        case "-":
            return f"({left}-{right})", x - y
        case "*":
            return f"({left} × {right})", x * y
        case "/" if y:
            return f"({left} / {right})", x / y
        case "^":
            power = draw(st.integers(0, 3))
            return f"({left})^{power}", x**power
    return f"-({left})", -x


@settings(max_examples=150, deadline=None)
@given(_expressions())
def test_exact_arithmetic_is_that_of_fractions(case: tuple[str, Fraction]) -> None:
    text, value = case
    found = calculate(f"{text} + 0", 1000)
    if found.exact or found.fraction:
        assert _fraction(found) == value
    else:
        assert abs(Fraction(found.value) - value) <= abs(value) * Fraction(1, 10**998)


@settings(max_examples=60, deadline=None)
@given(_WHOLE, _WHOLE.filter(bool))
def test_division_with_remainder_is_pythons(x: int, y: int) -> None:
    assert int(calculate(f"({x}) // ({y})").value) == x // y
    assert int(calculate(f"({x}) mod ({y})").value) == x % y


@settings(max_examples=60, deadline=None)
@given(st.floats(-700, 700), st.sampled_from(["sin", "cos", "exp", "atan", "tanh", "abs"]))
def test_functions_agree_with_the_standard_library(x: float, name: str) -> None:
    expected = abs(x) if name == "abs" else getattr(math, name)(x)
    found = calculate(f"{name}({x!r})", 30)
    assert float(found.value) == pytest.approx(expected, rel=1e-11, abs=1e-11)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789.+-*/^()!%, eEpisnkmtoxab°<>=", max_size=40))
def test_any_text_is_a_value_or_an_error_with_its_place(text: str) -> None:
    try:
        calculate(text)
        position = 0
    except CalculationError as error:
        position = error.position
    assert 0 <= position <= len(text)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", "14"),
        ("2^3^2", "512"),
        ("-2^2", "-4"),
        ("2**-2", "0.25"),
        ("0.1+0.2", "0.3"),
        ("0.1 + 0.2 = 0.3", "true"),
        ("3 < pi", "true"),
        ("e >= pi", "false"),
        ("sqrt(2)^2 == 2", "true"),
        ("sqrt(2)^2 != 2", "false"),
        ("sin(0.5) > 1/2", "false"),
        ("1 m < pi * 30 cm", "false"),
        ("0 == sin(0)", "true"),
        ("max(1, pi, 3) == pi", "true"),
        ("min(3, e) == e", "true"),
        ("median(4, pi, 1) == pi", "true"),
        ("(-pi)^2 == pi^2", "true"),
        ("(-pi)^3 == -pi^3", "true"),
        ("stdev(1, pi) > 1.514", "true"),
        ("3!!", "720"),
        ("sqrt(16/9) * 3", "4"),
        ("8^(1/3)", "2"),
        ("cbrt(-8)", "-2"),
        ("log(1000)", "3"),
        ("log2(2^200)", "200"),
        ("15% of 80", "12"),
        ("200 + 10%", "220"),
        ("200 - 10%", "180"),
        ("50%", "0.5"),
        ("17 % 5", "2"),
        ("10% + 5", "5.1"),
        ("1_000_000 * 2", "2000000"),
        ("0xff + 0b11", "258"),
        ("round(2.5)", "3"),
        ("round(-2.675, 2)", "-2.68"),
        ("(1+2)(3+4)", "21"),
        ("choose(52, 5)", "2598960"),
        ("powmod(3, 10^100, 10^9 + 7)", str(pow(3, 10**100, 10**9 + 7))),
        ("mean(1,2,3,4)", "2.5"),
        ("sum(1,2,3) / 4", "1.5"),
        ("1e400", "1" + "0" * 400),
        ("2^10000", str(2**10000)),
    ],
)
def test_values(expression: str, value: str) -> None:
    found = calculate(expression)
    assert found.exact
    assert found.value == value


@pytest.mark.parametrize(
    ("expression", "value", "unit"),
    [
        ("3 ft + 2 in in cm", "96.52", "cm"),
        ("20 °C to °F", "68", "°F"),
        ("-40 degF to degC", "-40", "°C"),
        ("0 degC to K", "273.15", "K"),
        ("1 mile to m", "1609.344", "m"),
        ("10 m / 2 s", "5", "m/s"),
        ("60 mph * 45 min to mile", "45", "mi"),
        ("1 kg m/s^2 to N", "1", "N"),
        ("1 GiB to MiB", "1024", "MiB"),
        ("sqrt(9 m^2)", "3", "m"),
        ("max(3 km, 2 mile)", "3.218688", "km"),
        ("100 km + 10%", "110", "km"),
    ],
)
def test_units_convert_exactly(expression: str, value: str, unit: str) -> None:
    found = calculate(expression)
    assert found.exact
    assert (found.value, found.unit) == (value, unit)


def test_an_angle_with_a_unit() -> None:
    assert calculate("sin(30 deg)").value == "0.5"
    assert calculate("cos(tau)").value == "1"


def test_a_fraction_that_does_not_end_is_given_both_ways() -> None:
    found = calculate("2/3", 10)
    assert found == Calculation("0.6666666667", False, "2/3")
    assert calculate("pi", 50).value == "3.1415926535897932384626433832795028841971693993751"


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9**9",
        "9^9^9",
        "2^2^2^2^2^2",
        "10^10^10",
        "(1/3)^1e9",
        "1000000!",
        "9!!!!",
        "factorial(10^9)",
        "gamma(10^100)",
        "exp(10^20)",
        "exp(exp(exp(10)))",
        "sin(10^1000)",
        "1e999999999",
        "approx(2)^approx(10)^30",
        "choose(10^6, 5*10^5)",
        "arrange(10^6, 5*10^5)",
        "powmod(2, 3, 2^20000)",
        "(2^130000) * (2^130000)",
        "lcm(2^100000, 3^60000)",
        "round(1, 10^9)",
        "0.1^100000 + 1",
        "root(2, 0)",
    ],
)
def test_what_costs_too_much_is_refused_before_it_is_begun(expression: str) -> None:
    before = time.process_time()
    with pytest.raises(CalculationError):
        calculate(expression)
    assert time.process_time() - before < 2.0


def test_many_large_operations_end_in_time() -> None:
    expression = "+".join(f"(7^40000/{n}^9000)" for n in range(11, 200, 2))
    before = time.perf_counter()
    with pytest.raises(CalculationError):
        calculate(expression)
    assert time.perf_counter() - before < MAX_SECONDS + 3.0


@pytest.mark.parametrize(
    ("expression", "position", "says"),
    [
        ("2 +", 3, "the end is not expected"),
        ("2 + * 3", 4, "'*' is not expected"),
        ("(2 + 3", 0, "not closed"),
        ("1 + 2 @ 3", 6, "'@' means nothing"),
        ("1/(2-2)", 1, "division by zero"),
        ("4 + sqr(4)", 4, "no function 'sqr'"),
        ("4 + foo", 4, "no constant and no unit"),
        ("5 km + 3 s", 5, "does not convert"),
        ("sqrt(-1)", 0, "no real number"),
        ("max()", 0, "takes 1 arguments or more"),
        ("20 degC + 5 degC", 8, "do not add up"),
        ("5 km to 3", 8, "must be a unit"),
        ("1 + (2 < 3)", 7, "only stand for itself"),
        ("", 0, "empty"),
        ("__import__('os')", 11, "means nothing"),
        ("(" * 500 + "1" + ")" * 500, 60, "levels deep"),
        ("-" * 3000 + "1", 60, "levels deep"),
        ("2^" * 1000 + "1", 120, "levels deep"),
    ],
)
def test_errors_say_what_and_where(expression: str, position: int, says: str) -> None:
    with pytest.raises(CalculationError) as caught:
        calculate(expression)
    assert says in str(caught.value)
    assert caught.value.position == pytest.approx(position, abs=2 if len(expression) > 500 else 0)


def test_a_misspelt_function_is_suggested() -> None:
    with pytest.raises(CalculationError) as caught:
        calculate("sqr(4)")
    assert "sqrt" in caught.value.hint


@pytest.mark.anyio
async def test_the_tool_answers_in_words_and_values() -> None:
    outcome = await calculator.call({"expression": "2/3", "digits": 5})
    assert outcome.text == "2/3 ≈ 0.66667"
    assert outcome.data == {"value": "0.66667", "exact": False, "fraction": "2/3", "unit": ""}
    with pytest.raises(ToolArguments, match="digits"):
        await calculator.call({"expression": "1", "digits": 0})
