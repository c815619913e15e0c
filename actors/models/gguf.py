"""Reads GGUF files: metadata, tensor directory, and tensors dequantized to float32.

Formats and arithmetic come from the `gguf` package. Its reader makes a numpy view of every element of every metadata
array, which takes seconds on a vocabulary of 50,000 tokens; the header is therefore parsed here, in a twentieth of the
time, and with every length checked against the size of the file.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from gguf import quants
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType

from ...runtime.errors import ModelDamaged, NoSuchModel
from .errors import UnsupportedModel

T = TypeVar("T")

MAGIC = b"GGUF"
VERSIONS = (2, 3)
# gguf dequantizes 16 rows at a time; rows of a small model are short, so numpy's overhead per call would dominate
# (2.1 s against 0.45 s for 135M weights). Reading this many rows as one long row costs nothing and is as exact.
ROWS_AS_ONE = 16

_SCALARS: dict[int, struct.Struct] = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}
_U32 = _SCALARS[GGUFValueType.UINT32]
_U64 = _SCALARS[GGUFValueType.UINT64]


class TensorInfo(NamedTuple):
    """One entry of the tensor directory. `shape` is in torch's order (rows first), `offset` counts from the file's
    start."""

    name: str
    shape: tuple[int, ...]
    quantization: GGMLQuantizationType
    offset: int
    num_bytes: int


class GGUFFile:
    """A GGUF file, mapped into memory: `metadata`, `tensors` (by name), and `read(name)`.

    Opening parses the header and checks that every tensor lies inside the file; it raises `NoSuchModel`,
    `ModelDamaged` (not GGUF, or cut short) or `UnsupportedModel` (a version or quantization not read here).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise NoSuchModel(f"there is no file {path}") from None
        except ValueError:
            raise ModelDamaged(f"{path} is empty") from None
        try:
            header = _Header(path, self._map)
        except BaseException:
            self._map.close()
            raise
        self.metadata: Mapping[str, Any] = header.metadata
        self.tensors: Mapping[str, TensorInfo] = header.tensors

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._map.close()

    def get(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The metadata value `key`, which must be a `kind`; `ModelDamaged` if it is missing and has no default."""
        value = self.metadata.get(key, default)
        if value is None:
            raise ModelDamaged(f"{self.path} has no metadata '{key}'")
        if not isinstance(value, kind):
            raise ModelDamaged(f"{self.path}: metadata '{key}' is no {kind.__name__}")
        return value

    def read(self, name: str) -> np.ndarray:
        """The tensor as a new float32 array in torch's shape."""
        info = self.tensors[name]
        raw = np.frombuffer(self._map, dtype=np.uint8, count=info.num_bytes, offset=info.offset)
        row_bytes = info.num_bytes // max(1, math.prod(info.shape[:-1]))
        num_rows = info.num_bytes // row_bytes
        as_one = math.gcd(num_rows, ROWS_AS_ONE)
        if info.quantization == GGMLQuantizationType.F32:
            return raw.view(np.float32).reshape(info.shape).copy()
        if info.quantization == GGMLQuantizationType.F16:
            return raw.view(np.float16).reshape(info.shape).astype(np.float32)
        return quants.dequantize(raw.reshape(-1, row_bytes * as_one), info.quantization).reshape(info.shape)


class _Header:
    """The parsed head of a file; only `GGUFFile` uses it."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, TensorInfo] = {}
        try:
            self._parse()
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise ModelDamaged(
                f"{path} is damaged: its header breaks off or makes no sense at byte {self._at}",
                hint="fetch the file again (`callboard pull NAME --force`)",
            ) from error

    def _parse(self) -> None:
        if self._take(4) != MAGIC:
            raise ModelDamaged(f"{self._path} is no GGUF file")
        version = self._scalar(_U32)
        if version not in VERSIONS:
            raise UnsupportedModel(
                f"{self._path} has GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} are read here"
            )
        num_tensors, num_fields = self._scalar(_U64), self._scalar(_U64)
        for _ in range(num_fields):
            key = self._string()
            self.metadata[key] = self._value(self._scalar(_U32))
        if self.metadata.get("split.count", 0) not in (0, 1):
            raise UnsupportedModel(f"{self._path} is one part of a split model", hint="merge the parts into one file")
        directory = [self._tensor_entry() for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise struct.error(f"alignment {alignment!r}")
        start = -(-self._at // alignment) * alignment
        for entry in directory:
            self._place(entry._replace(offset=start + entry.offset))

    def _place(self, info: TensorInfo) -> None:
        missing = info.offset + info.num_bytes - len(self._data)
        if missing > 0:
            raise ModelDamaged(
                f"{self._path} is cut short: tensor '{info.name}' ends {missing:,} bytes after the end of the file",
                hint="fetch the file again (`callboard pull NAME --force`)",
            )
        self.tensors[info.name] = info

    def _tensor_entry(self) -> TensorInfo:
        name = self._string()
        num_dims = self._scalar(_U32)
        shape = tuple(reversed([self._scalar(_U64) for _ in range(num_dims)]))
        code = self._scalar(_U32)
        offset = self._scalar(_U64)
        try:
            quantization = GGMLQuantizationType(code)
        except ValueError:
            raise UnsupportedModel(f"{self._path}: tensor '{name}' has the unknown type {code}") from None
        if not hasattr(quants, quantization.name) and quantization.name not in ("F32", "F16"):
            raise UnsupportedModel(f"{self._path}: tensor '{name}' has type {quantization.name}, not read here")
        block_size, block_bytes = GGML_QUANT_SIZES[quantization]
        if not shape or 0 in shape or shape[-1] % block_size:
            raise ModelDamaged(f"{self._path} is damaged: tensor '{name}' has the shape {shape}")
        return TensorInfo(name, shape, quantization, offset, math.prod(shape) // block_size * block_bytes)

    def _take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        if len(taken) != count:
            raise struct.error("end of file")
        self._at += count
        return taken

    def _scalar(self, kind: struct.Struct) -> Any:
        (value,) = kind.unpack_from(self._data, self._at)
        self._at += kind.size
        return value

    def _string(self) -> str:
        return self._take(self._scalar(_U64)).decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == GGUFValueType.STRING:
            return self._string()
        if kind == GGUFValueType.ARRAY:
            return self._array()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        raise struct.error(f"unknown value type {kind}")

    def _array(self) -> list[Any]:
        kind, count = self._scalar(_U32), self._scalar(_U64)
        scalar = _SCALARS.get(kind)
        if scalar is None:
            return [self._value(kind) for _ in range(count)]
        return [value for (value,) in scalar.iter_unpack(self._take(count * scalar.size))]
