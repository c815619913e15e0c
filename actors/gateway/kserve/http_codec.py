"""Requests and answers in JSON, with tensors in it or, as bytes, behind it: Triton's binary tensor extension."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ..bodies import decode_body, too_large
from ..errors import BadBody
from .signature import TEXT, Inference
from .tensors import FLOATS, INTEGERS, Tensor, Value, check_length, checked_count, from_raw, to_raw

HEADER_LENGTH = "Inference-Header-Content-Length"
Parameters = dict[str, str | int | float | bool | list[str] | None]


class InputBody(msgspec.Struct, kw_only=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: Parameters = {}
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class OutputBody(msgspec.Struct, kw_only=True):
    name: str
    parameters: Parameters = {}


class InferBody(msgspec.Struct, kw_only=True):
    inputs: list[InputBody]
    id: str = ""
    parameters: Parameters = {}
    outputs: list[OutputBody] = []


def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Raises BadBody for an encoding that is not known or data that are not of it, BodyTooLarge."""
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "deflate"):
        raise BadBody(f"Content-Encoding: expected gzip or deflate, got '{encoding}'", param="Content-Encoding")
    try:
        opened = zlib.decompressobj(zlib.MAX_WBITS | 32)  # either header is recognised
        plain = opened.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadBody(f"the body is no {encoding}: {error}") from None
    if len(plain) > max_bytes:
        raise too_large(max_bytes)
    if not opened.eof:
        raise BadBody(f"the body is no {encoding}: it ends before it is whole")
    return plain


def read_infer(body: bytes, header_length: str) -> tuple[Inference, InferBody]:
    """`header_length`: how many bytes of the body are JSON, "" for all. Raises BadBody."""
    split = len(body)
    if header_length:
        if not header_length.isascii() or not header_length.isdigit() or int(header_length) > len(body):
            raise BadBody(f"{HEADER_LENGTH}: expected 0 to {len(body)}, got '{header_length}'", param=HEADER_LENGTH)
        split = int(header_length)
    header = decode_body(body[:split], InferBody)
    binary = memoryview(body)[split:]
    inputs: list[Tensor] = []
    for index, one in enumerate(header.inputs):
        size = one.parameters.get("binary_data_size")
        if size is None:
            inputs.append(_from_json(one, index))
            continue
        where = f"inputs[{index}].parameters.binary_data_size"
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary):
            raise BadBody(f"{where}: expected 0 to {len(binary)}, the bytes that are left, got {size}", param=where)
        inputs.append(from_raw(one.name, one.datatype, one.shape, bytes(binary[:size])))
        binary = binary[size:]
    if binary:
        raise BadBody(f"{len(binary)} bytes after the last input belong to none")
    outputs = tuple(output.name for output in header.outputs)
    return Inference(tuple(inputs), _present(header.parameters), outputs, header.id), header


def _present(parameters: Parameters) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _from_json(one: InputBody, index: int) -> Tensor:
    where = f"inputs[{index}].data"
    if one.data is msgspec.UNSET:
        raise BadBody(f"{where}: it is missing", param=where)
    count = checked_count(one.name, one.datatype, one.shape)
    values = list(_flat(one.data))
    check_length(one.name, one.shape, count, values)
    return Tensor(one.name, one.datatype, tuple(one.shape), tuple(_value(one.datatype, each, where) for each in values))


def _flat(data: Iterable[Any]) -> Iterable[Any]:
    """Rows may be lists of their own."""
    stack = [iter(data)]
    while stack:
        for value in stack[-1]:
            if isinstance(value, list):
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def _value(datatype: str, value: object, where: str) -> Value:
    if datatype == "BYTES":
        if isinstance(value, str):
            return value.encode()
    elif datatype == "BOOL":
        if isinstance(value, bool):
            return value
    elif isinstance(value, int) and not isinstance(value, bool):
        if datatype in INTEGERS or datatype in FLOATS:
            return value
    elif isinstance(value, float) and datatype in FLOATS:
        return value
    raise BadBody(f"{where}: expected elements of {datatype}, got {msgspec.json.encode(value).decode()}", param=where)


def write_infer(head: dict[str, Any], tensors: Sequence[Tensor], asked: InferBody) -> tuple[bytes, int | None]:
    """The body of an answer, and how much of it is JSON (None: all). Each output goes as its request wants it."""
    wanted = {output.name: output.parameters.get("binary_data") for output in asked.outputs}
    otherwise = asked.parameters.get("binary_data_output", False)
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for tensor in tensors:
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        in_bytes = wanted.get(tensor.name)
        if otherwise if in_bytes is None else in_bytes:
            raw = to_raw(tensor)
            output["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        else:
            output["data"] = plain_values(tensor)
        outputs.append(output)
    header = msgspec.json.encode(head | {"outputs": outputs})
    return b"".join([header, *binary]), len(header) if binary else None


def plain_values(tensor: Tensor) -> list[Any]:
    return [value.decode() if isinstance(value, bytes) else value for value in tensor.values]


def read_generate(body: bytes) -> Inference:
    """Of Triton's generate extension: `text_input`, settings beside it or in `parameters`, `id`. Raises BadBody."""
    fields = decode_body(body, dict[str, Any])
    text = fields.pop(TEXT, None)
    id = fields.pop("id", "")
    given = fields.pop("parameters", {})
    if not isinstance(text, str):
        raise BadBody(f"{TEXT}: expected a string" + ("" if text is not None else ", and it is missing"), param=TEXT)
    if not isinstance(id, (str, int)) or isinstance(id, bool):
        raise BadBody("id: expected a string", param="id")
    if not isinstance(given, dict):
        raise BadBody("parameters: expected an object", param="parameters")
    parameters = {name: value for name, value in (given | fields).items() if value is not None}
    return Inference((Tensor(TEXT, "BYTES", (1,), (text.encode(),)),), parameters, (), str(id))
