"""The grammar, by precedence climbing. From loose to tight:

to, in, ->            conversion of units: 5 km/h to m/s
< <= > >= == !=       a comparison, which is true or false
+ -                   with `a + 10%` meaning ten percent of a more, as on a pocket calculator
* / // % mod of       `%` between two values is the remainder, elsewhere it is percent
5 km, 2 pi, 3 (1+2)   a number before a name or a bracket: binds tighter than `/`, so 10 m / 2 s is 5 m/s
- +                   signs
^ **                  to the right: 2^3^2 is 2^9, and -2^2 is -4
! %                   after a value
"""

from __future__ import annotations

from fractions import Fraction

from .errors import CalculationError
from .limits import MAX_DEPTH, MAX_DIGITS, MAX_EXPONENT, MAX_LENGTH
from .syntax import Binary, Call, Convert, Name, Node, Number, Unary
from .tokens import Kind, Token, tokens_of

_COMPARISONS = {"<", "<=", ">", ">=", "==", "!=", "="}
_SUMS = {"+", "-"}
_PRODUCTS = {"*", "/", "//", "%", "mod", "of"}
_POWERS = {"^", "**"}
_CONVERSIONS = {"to", "in", "->"}
_WORDS = {"mod", "of", "to"}


def parse(expression: str) -> Node:
    """The expression's tree. Raises CalculationError with the place."""
    if len(expression) > MAX_LENGTH:
        raise CalculationError(f"the expression is longer than {MAX_LENGTH} characters", MAX_LENGTH)
    return _Parser(tokens_of(expression)).whole()


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._index = 0
        self._depth = 0

    def whole(self) -> Node:
        if self._next.kind is Kind.END:
            raise CalculationError("the expression is empty", 0, hint="give one, like 2 * (3 + 4)")
        node = self._conversion()
        if self._next.kind is not Kind.END:
            raise self._unexpected()
        return node

    # One method per level of precedence.

    def _conversion(self) -> Node:
        self._deeper()
        node = self._comparison()
        while (token := self._next).text in _CONVERSIONS and token.kind is not Kind.NUMBER:
            self._take()
            node = Convert(node, self._product(), token.position)
        self._depth -= 1
        return node

    def _comparison(self) -> Node:
        node = self._sum()
        if self._next.text in _COMPARISONS:
            token = self._take()
            return Binary("==" if token.text == "=" else token.text, node, self._sum(), token.position)
        return node

    def _sum(self) -> Node:
        node = self._product()
        while self._next.text in _SUMS:
            token = self._take()
            node = Binary(token.text, node, self._product(), token.position)
        return node

    def _product(self) -> Node:
        node = self._signed()
        while self._next.text in _PRODUCTS:
            token = self._take()
            operator = {"%": "mod", "of": "*"}.get(token.text, token.text)
            node = Binary(operator, node, self._signed(), token.position)
        return node

    def _signed(self) -> Node:
        if self._next.text in _SUMS:
            token = self._take()
            self._deeper()
            operand = self._signed()
            self._depth -= 1
            return Unary(token.text, operand, token.position)
        return self._juxtaposed()

    def _juxtaposed(self) -> Node:
        node = self._power()
        while self._starts_factor():
            position = self._next.position
            node = Binary("juxtaposed", node, self._power(), position)
        return node

    def _power(self) -> Node:
        node = self._postfix()
        if self._next.text in _POWERS:
            token = self._take()
            self._deeper()
            exponent = self._exponent()
            self._depth -= 1
            return Binary("^", node, exponent, token.position)
        return node

    def _exponent(self) -> Node:
        if self._next.text in _SUMS:
            token = self._take()
            self._deeper()
            operand = self._exponent()
            self._depth -= 1
            return Unary(token.text, operand, token.position)
        return self._power()

    def _postfix(self) -> Node:
        node = self._primary()
        while True:
            token = self._next
            if token.text == "!" or (token.text == "%" and self._is_percent()):
                self._take()
                node = Unary(token.text, node, token.position)
            else:
                return node

    def _primary(self) -> Node:
        token = self._next
        if token.kind is Kind.NUMBER:
            self._take()
            return Number(_number(token), token.position)
        if token.text == "(":
            return self._bracketed()
        if token.kind is Kind.NAME and token.text not in _WORDS:
            self._take()
            if self._next.text == "(" and self._touches(token):
                return Call(token.text, self._arguments(), token.position)
            return Name(token.text, token.position)
        raise self._unexpected()

    def _bracketed(self) -> Node:
        opened = self._take()
        node = self._conversion()
        if self._next.text != ")":
            raise self._unclosed(opened)
        self._take()
        return node

    def _arguments(self) -> tuple[Node, ...]:
        opened = self._take()
        found: list[Node] = []
        while self._next.text != ")":
            if found:
                if self._next.text != ",":
                    raise self._unclosed(opened)
                self._take()
            found.append(self._conversion())
        self._take()
        return tuple(found)

    # What the next token is.

    @property
    def _next(self) -> Token:
        return self._tokens[self._index]

    @property
    def _after_next(self) -> Token:
        return self._tokens[min(self._index + 1, len(self._tokens) - 1)]

    def _take(self) -> Token:
        token = self._next
        self._index += 1
        return token

    def _touches(self, name: Token) -> bool:
        return self._next.position == name.position + len(name.text)

    def _starts_factor(self) -> bool:
        token = self._next
        if token.kind is Kind.NAME:
            return token.text not in _WORDS and not (token.text == "in" and self._in_converts())
        return token.text == "("

    def _in_converts(self) -> bool:
        """`in` is the inch where no unit follows it: `2 in + 3 in in cm`."""
        after = self._after_next
        return (after.kind is Kind.NAME and after.text not in _WORDS | {"in"}) or after.text == "("

    def _is_percent(self) -> bool:
        """Percent where no value follows that a remainder could be taken by."""
        after = self._after_next
        if after.kind is Kind.NAME:
            return after.text in _WORDS | {"in"}
        return after.kind is not Kind.NUMBER and after.text != "("

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CalculationError(f"more than {MAX_DEPTH} levels deep", self._next.position)

    def _unexpected(self) -> CalculationError:
        token = self._next
        return CalculationError(f"{token} is not expected", token.position)

    def _unclosed(self, opened: Token) -> CalculationError:
        return CalculationError(f"this bracket is not closed before {self._next}", opened.position)


def _number(token: Token) -> Fraction:
    text = token.text.replace("_", "")
    if len(text) > MAX_DIGITS:
        raise CalculationError(f"a number of more than {MAX_DIGITS} digits", token.position)
    if text[:2].lower() in ("0x", "0b", "0o"):
        if len(text) == 2:
            raise CalculationError(f"'{token.text}' is no number", token.position)
        return Fraction(int(text, 0))
    _, _, exponent = text.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT:
        raise CalculationError(f"an exponent beyond {MAX_EXPONENT}", token.position)
    return Fraction(text.rstrip(".") if not exponent else text.lower().replace(".e", "e"))
