"""Requests and answers as the gRPC protocol's messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import BadBody
from .proto import inference_pb2 as pb
from .signature import VERSION, Inference
from .tensors import Tensor, Value, check_length, checked_count, from_raw, to_raw

# Where `contents` has the values of each type.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read_infer(request: pb.ModelInferRequest) -> Inference:
    """Raises BadBody."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadBody(f"raw_input_contents: expected {len(request.inputs)}, one for each input, got {len(raw)}")
    inputs: list[Tensor] = []
    for index, one in enumerate(request.inputs):
        if raw:
            if one.HasField("contents"):
                raise BadBody(f"inputs[{index}].contents: there are raw_input_contents already")
            inputs.append(from_raw(one.name, one.datatype, tuple(one.shape), raw[index]))
        else:
            inputs.append(_from_contents(one))
    outputs = tuple(output.name for output in request.outputs)
    return Inference(tuple(inputs), _parameters(request.parameters), outputs, request.id)


def _parameters(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in given.items():
        field = value.WhichOneof("parameter_choice")
        if field is not None:
            found[name] = getattr(value, field)
    return found


def _from_contents(one: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    shape = tuple(one.shape)
    count = checked_count(one.name, one.datatype, shape)
    field = _CONTENTS.get(one.datatype)
    if field is None:
        raise BadBody(
            f"inputs.{one.name}: {one.datatype} goes into raw_input_contents only", param=f"inputs.{one.name}"
        )
    values: tuple[Value, ...] = tuple(getattr(one.contents, field))
    check_length(one.name, shape, count, values)
    return Tensor(one.name, one.datatype, shape, values)


def write_infer(
    name: str, id: str, tensors: Sequence[Tensor], *, raw: bool, final: bool | None = None
) -> pb.ModelInferResponse:
    """`raw`: tensors as bytes, for who sent such. `final`: in a stream, whether it is the last one to its request."""
    response = pb.ModelInferResponse(model_name=name, model_version=VERSION, id=id)
    if final is not None:
        response.parameters["triton_final_response"].bool_param = final
    for tensor in tensors:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(to_raw(tensor))
        else:
            getattr(output.contents, _CONTENTS[tensor.datatype]).extend(tensor.values)
    return response
