"""What a text model takes and gives as tensors, and a request in these terms as one of the company's."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....schemas.serve import ChatMessage, Generate
from ..engines import Engine
from ..errors import BadBody, ModelUnknown
from .tensors import FLOATS, INTEGERS, Tensor, decimal_of

VERSION = "1"
PLATFORM = "callboard"


@dataclass(frozen=True)
class Inference:
    """A request, whatever it came by. `parameters`: strings, numbers and booleans; lists of strings too where the way
    has them. `outputs`: which are wanted, none for all."""

    inputs: tuple[Tensor, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    id: str = ""


@dataclass(frozen=True)
class Asked:
    """What it asks the company. `shape`: of `text_input`, so of each output. `chat`: answers may begin with thoughts.
    `stream`: None where it does not say. `timeout_s`: how long its sender waits, for the answer or for its next
    piece."""

    requests: tuple[Generate, ...]
    shape: tuple[int, ...]
    outputs: tuple[str, ...]
    chat: bool = False
    stream: bool | None = None
    timeout_s: float = math.inf


@dataclass(frozen=True)
class Described:
    """A tensor of the signature; each has one dimension of any size."""

    name: str
    datatype: str
    optional: bool = False


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("an integer")
    return value


def _real(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("a number")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("a boolean")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a string")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise ValueError("a string, or a list of strings")


@dataclass(frozen=True)
class _Setting:
    datatype: str
    read: Callable[[object], Any]


_COUNT, _SHARE, _FLAG = _Setting("INT32", _whole), _Setting("FP32", _real), _Setting("BOOL", _flag)
# What all gateways call the session that an answer belongs to.
SESSION = "session_id"
# Fields of `Generate` by their own names but for that one: optional inputs, and as well parameters of a request.
SETTINGS: Mapping[str, _Setting] = {
    "max_tokens": _COUNT,
    "min_tokens": _COUNT,
    "temperature": _SHARE,
    "top_p": _SHARE,
    "top_k": _COUNT,
    "min_p": _SHARE,
    "repetition_penalty": _SHARE,
    "presence_penalty": _SHARE,
    "frequency_penalty": _SHARE,
    "seed": _Setting("INT64", _whole),
    "stop": _Setting("BYTES", _texts),
    "ignore_eos": _FLAG,
    "deterministic": _FLAG,
    SESSION: _Setting("BYTES", _text),
    "session_ttl_s": _SHARE,
}
# Of this protocol only.
CHAT, STREAM, JSON_SETTINGS = "chat", "stream", "sampling_parameters"
OPTIONS: Mapping[str, _Setting] = {**SETTINGS, CHAT: _FLAG, STREAM: _FLAG}
# Parameters that clients send along and that do not change an answer.
WITHOUT_EFFECT = frozenset({"binary_data_output", "triton_enable_empty_final_response", "priority", "traceparent"})
TIMEOUT = "timeout"

TEXT = "text_input"
INPUTS = (
    Described(TEXT, "BYTES"),
    *(Described(name, setting.datatype, optional=True) for name, setting in OPTIONS.items()),
    Described(JSON_SETTINGS, "BYTES", optional=True),
)
# What a model thought before its answer, where it was asked by `chat`.
THOUGHTS = "reasoning_content"
OUTPUTS = (
    Described("text_output", "BYTES"),
    Described("finish_reason", "BYTES"),
    Described("prompt_tokens", "INT32"),
    Described("completion_tokens", "INT32"),
    Described(THOUGHTS, "BYTES"),
)
MAX_TEXTS = 1024


def check_version(model: str, version: str) -> None:
    """Raises ModelUnknown for a version that no model here has."""
    if version not in ("", VERSION):
        raise ModelUnknown(f"there is no version '{version}' of '{model}'; there is: {VERSION}", param="version")


def asked_of(inference: Inference, engine: Engine, client: str) -> Asked:
    """Raises BadBody, with the name of what is wrong and what was expected."""
    texts, shape = _texts_of(inference.inputs)
    fields = _fields(inference)
    chat = fields.pop(CHAT, False)
    stream = fields.pop(STREAM, None)
    session = fields.pop(SESSION, "")
    if session and len(texts) > 1:
        raise BadBody(f"{SESSION}: one text goes on with a session, not {len(texts)}", param=SESSION)
    fields |= {"model": engine.model.model, "adapter": engine.adapter, "client": client, "session": session}
    requests = tuple(
        Generate(messages=(ChatMessage("user", text),), **fields) if chat else Generate(prompt=text, **fields)
        for text in texts
    )
    outputs, timeout_s = _outputs(inference.outputs, chat), _timeout(inference.parameters.get(TIMEOUT))
    return Asked(requests, shape, outputs, chat, stream, timeout_s)


def _timeout(value: object) -> float:
    """Seconds; it comes in microseconds."""
    if value is None:
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadBody(f"parameters.{TIMEOUT}: expected microseconds, 1 or more", param=f"parameters.{TIMEOUT}")
    return value / 1e6


def _texts_of(inputs: Sequence[Tensor]) -> tuple[list[str], tuple[int, ...]]:
    names = [tensor.name for tensor in inputs]
    for name in names:
        if names.count(name) > 1:
            raise BadBody(f"inputs.{name}: it is there more than once", param=f"inputs.{name}")
    text = next((tensor for tensor in inputs if tensor.name == TEXT), None)
    if text is None:
        raise BadBody(f"inputs: `{TEXT}` is missing", param="inputs")
    if text.datatype != "BYTES":
        raise BadBody(f"inputs.{TEXT}.datatype: expected BYTES, got {text.datatype}", param=f"inputs.{TEXT}.datatype")
    if not 1 <= len(text.values) <= MAX_TEXTS:
        raise BadBody(f"inputs.{TEXT}: expected 1 to {MAX_TEXTS} texts, got {len(text.values)}", param=f"inputs.{TEXT}")
    return _decoded(text), text.shape


def _decoded(tensor: Tensor) -> list[str]:
    try:
        return [value.decode() for value in tensor.values if isinstance(value, bytes)]
    except UnicodeDecodeError as error:
        raise BadBody(f"inputs.{tensor.name}: it is no UTF-8 ({error})", param=f"inputs.{tensor.name}") from None


def _fields(inference: Inference) -> dict[str, Any]:
    """What was set, by name: as an input, as a parameter, or in JSON, the first of these where it is there twice."""
    given = {tensor.name: tensor for tensor in inference.inputs if tensor.name != TEXT}
    found: dict[str, Any] = {}
    if (in_json := given.pop(JSON_SETTINGS, None)) is not None:
        found |= _from_json(_one(in_json), f"inputs.{JSON_SETTINGS}")
    for name, value in inference.parameters.items():
        if name == JSON_SETTINGS:
            found |= _from_json(value, f"parameters.{name}")
        elif name != TIMEOUT and name not in WITHOUT_EFFECT:
            found[name] = _read(name, value, f"parameters.{name}")
    for name, tensor in given.items():
        found[name] = _read(name, _setting_value(tensor), f"inputs.{name}")
    return found


def _from_json(text: object, where: str) -> dict[str, Any]:
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except ValueError as error:
        raise BadBody(f"{where}: it is no JSON ({error})", param=where) from None
    if not isinstance(values, dict):
        raise BadBody(f"{where}: expected a JSON object in a string", param=where)
    return {name: _read(name, value, f"{where}.{name}") for name, value in values.items()}


def _read(name: str, value: object, where: str) -> Any:
    setting = OPTIONS.get(name)
    if setting is None:
        raise BadBody(f"{where}: this is not known here; there are: {', '.join(OPTIONS)}", param=where)
    try:
        return setting.read(value)
    except ValueError as error:
        raise BadBody(f"{where}: expected {error}, got {json.dumps(value, default=str)}", param=where) from None


def _setting_value(tensor: Tensor) -> object:
    """One value, whatever the shape; of `stop` all of them."""
    setting = OPTIONS.get(tensor.name)
    if setting is None:
        return None  # it is refused by its name
    where = f"inputs.{tensor.name}.datatype"
    alike = next((kinds for kinds in (INTEGERS, FLOATS) if setting.datatype in kinds), {setting.datatype})
    if tensor.datatype not in alike:
        raise BadBody(f"{where}: expected {setting.datatype}, got {tensor.datatype}", param=where)
    return _decoded(tensor) if tensor.name == "stop" else _one(tensor)


def _one(tensor: Tensor) -> object:
    where = f"inputs.{tensor.name}"
    if len(tensor.values) != 1:
        raise BadBody(f"{where}: expected one element, got {len(tensor.values)}", param=where)
    (value,) = _decoded(tensor) if tensor.datatype == "BYTES" else tensor.values
    return decimal_of(value) if tensor.datatype == "FP32" and isinstance(value, float) else value


def _outputs(names: Sequence[str], chat: bool) -> tuple[str, ...]:
    """Those that are named, or all that have something to say."""
    known = [output.name for output in OUTPUTS]
    for name in names:
        if name not in known:
            raise BadBody(f"outputs: there is no '{name}'; there are: {', '.join(known)}", param="outputs")
    return tuple(names) or tuple(name for name in known if chat or name != THOUGHTS)
