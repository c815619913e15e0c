"""Tensors as the protocol has them: values in rows, of a few types, as bytes on the way."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from ..errors import BadBody

Value = bytes | int | float | bool

# The letters of `struct` for each type; BYTES has elements of any length.
_LETTERS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
INTEGERS = frozenset(name for name in _LETTERS if "INT" in name)
FLOATS = frozenset(name for name in _LETTERS if name.startswith("FP"))
MAX_DIMS = 16


@dataclass(frozen=True)
class Tensor:
    """`values`, row by row: bytes for BYTES, else numbers of the type."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: tuple[Value, ...]


def text_tensor(name: str, texts: Sequence[str], shape: tuple[int, ...]) -> Tensor:
    return Tensor(name, "BYTES", shape, tuple(text.encode() for text in texts))


def checked_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """How many elements an input of that type and shape has. Raises BadBody."""
    if datatype != "BYTES" and datatype not in _LETTERS:
        known = ", ".join(("BYTES", *_LETTERS))
        raise BadBody(f"inputs.{name}.datatype: expected one of {known}, got '{datatype}'", param=f"inputs.{name}")
    if len(shape) > MAX_DIMS or any(size < 0 for size in shape):
        raise BadBody(
            f"inputs.{name}.shape: expected at most {MAX_DIMS} sizes of 0 or more, got {list(shape)}",
            param=f"inputs.{name}.shape",
        )
    return prod(shape)


def check_length(name: str, shape: Sequence[int], count: int, values: Sequence[object]) -> None:
    """Raises BadBody where there are not as many values as the shape says."""
    if len(values) != count:
        raise BadBody(
            f"inputs.{name}: expected {count} elements for the shape {list(shape)}, got {len(values)}",
            param=f"inputs.{name}",
        )


def from_raw(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """From little-endian bytes; each element of BYTES is preceded by its length in four. Raises BadBody."""
    count = checked_count(name, datatype, shape)
    values: tuple[Value, ...]
    if datatype == "BYTES":
        values = tuple(_elements(name, raw))
        check_length(name, shape, count, values)
    else:
        size = struct.calcsize(_LETTERS[datatype])
        if len(raw) != count * size:
            raise BadBody(
                f"inputs.{name}: expected {count * size} bytes for {count} elements of {datatype}, got {len(raw)}",
                param=f"inputs.{name}",
            )
        values = struct.unpack(f"<{count}{_LETTERS[datatype]}", raw)
    return Tensor(name, datatype, tuple(shape), values)


def _elements(name: str, raw: bytes) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        end = at + 4
        if end <= len(raw):
            end += int.from_bytes(raw[at:end], "little")
        if end > len(raw):
            raise BadBody(f"inputs.{name}: its element {len(found)} ends after the data", param=f"inputs.{name}")
        found.append(raw[at + 4 : end])
        at = end
    return found


def to_raw(tensor: Tensor) -> bytes:
    if tensor.datatype != "BYTES":
        return struct.pack(f"<{len(tensor.values)}{_LETTERS[tensor.datatype]}", *tensor.values)
    pieces: list[bytes] = []
    for value in tensor.values:
        assert isinstance(value, bytes)
        pieces += [len(value).to_bytes(4, "little"), value]
    return b"".join(pieces)


def decimal_of(value: float) -> float:
    """The shortest decimal number that a 32-bit float stands for: 0.9 for 0.89999998, as its sender wrote it."""
    if value in (float("inf"), float("-inf")):
        return value
    return next(
        (found for digits in range(6, 9) if _same_in_32_bits(found := float(f"{value:.{digits}g}"), value)), value
    )


def _same_in_32_bits(one: float, other: float) -> bool:
    try:
        return struct.pack("<f", one) == struct.pack("<f", other)
    except OverflowError:
        return False
