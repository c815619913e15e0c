"""What KServe's routes take and answer as JSON, for the OpenAPI document. The fields of settings and outputs are those
of the signature."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from .http_codec import Parameters
from .signature import JSON_SETTINGS, OPTIONS, OUTPUTS, TEXT, THOUGHTS, TIMEOUT

_TYPES: dict[str, Any] = {"INT32": int, "INT64": int, "FP32": float, "BOOL": bool, "BYTES": str}


class KserveError(msgspec.Struct, kw_only=True):
    error: str


class Server(msgspec.Struct, kw_only=True):
    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, kw_only=True):
    live: bool


class Ready(msgspec.Struct, kw_only=True):
    ready: bool


class ModelReady(msgspec.Struct, kw_only=True):
    name: str
    ready: bool


class TensorOfModel(msgspec.Struct, kw_only=True):
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, kw_only=True):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorOfModel]
    outputs: list[TensorOfModel]


class ConfiguredOutput(msgspec.Struct, kw_only=True):
    name: str
    data_type: str
    dims: list[int]


class ConfiguredInput(ConfiguredOutput, kw_only=True):
    optional: bool


class TransactionPolicy(msgspec.Struct, kw_only=True):
    decoupled: bool


class ModelConfig(msgspec.Struct, kw_only=True):
    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: list[ConfiguredInput]
    output: list[ConfiguredOutput]
    model_transaction_policy: TransactionPolicy


class IndexedModel(msgspec.Struct, kw_only=True):
    name: str
    version: str
    state: Literal["READY"]
    reason: str


class OutputTensor(msgspec.Struct, kw_only=True):
    """`data`: the elements in JSON. Those that were asked for as bytes lie behind the JSON, and `parameters` tells how
    many they are."""

    name: str
    datatype: str
    shape: list[int]
    data: list[str | int] = []
    parameters: dict[str, int] = {}


class InferAnswer(msgspec.Struct, kw_only=True):
    model_name: str
    model_version: str
    outputs: list[OutputTensor]
    id: str = ""


def _generate_body() -> type[msgspec.Struct]:
    settings = {name: _TYPES[setting.datatype] for name, setting in OPTIONS.items()} | {"stop": str | list[str]}
    fields: list[Any] = [
        (TEXT, str),
        ("id", str | int, ""),
        ("parameters", Parameters, msgspec.field(default_factory=dict)),
        *((name, kind | None, None) for name, kind in {**settings, JSON_SETTINGS: str, TIMEOUT: int}.items()),
    ]
    doc = "A text to go on from; settings stand beside it or in `parameters`."
    return msgspec.defstruct("GenerateBody", fields, kw_only=True, namespace={"__doc__": doc})


def _generate_answer() -> type[msgspec.Struct]:
    fields: list[Any] = [
        ("model_name", str),
        ("model_version", str),
        ("id", str, ""),
        *((output.name, _TYPES[output.datatype]) for output in OUTPUTS if output.name != THOUGHTS),
        (THOUGHTS, str, ""),
    ]
    return msgspec.defstruct("GenerateAnswer", fields, kw_only=True, namespace={"__doc__": "Outputs by their names."})


GENERATE_BODY, GENERATE_ANSWER = _generate_body(), _generate_answer()
