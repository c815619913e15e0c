"""The parts of an expression. Each knows its place, for errors."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction
    position: int


@dataclass(frozen=True, slots=True)
class Name:
    """A constant or a unit."""

    text: str
    position: int


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x`, `+x`, `x!`, and `x%`."""

    operator: str
    operand: Node
    position: int


@dataclass(frozen=True, slots=True)
class Binary:
    operator: str
    left: Node
    right: Node
    position: int


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    arguments: tuple[Node, ...]
    position: int


@dataclass(frozen=True, slots=True)
class Convert:
    """`value to unit`. The unit is an expression of names."""

    value: Node
    unit: Node
    position: int


Node = Number | Name | Unary | Binary | Call | Convert
