"""Tensors on the way and back, and the modules that are generated from the protocol's descriptions."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.gateway.errors import BadBody
from callboard.actors.gateway.kserve import grpc_codec, http_codec
from callboard.actors.gateway.kserve.proto import inference_pb2, regenerate
from callboard.actors.gateway.kserve.tensors import Tensor, decimal_of, from_raw, to_raw

BITS = {"INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64}
ELEMENTS: dict[str, Any] = {
    "BYTES": st.text(max_size=9).map(str.encode),
    "BOOL": st.booleans(),
    "FP16": st.floats(width=16, allow_nan=False),
    "FP32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "FP64": st.floats(allow_nan=False, allow_infinity=False),
    **{name: st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for name, bits in BITS.items()},
    **{f"U{name}": st.integers(0, 2**bits - 1) for name, bits in BITS.items()},
}


@st.composite
def tensors(draw: st.DrawFn, *without: str) -> Tensor:
    datatype = draw(st.sampled_from([name for name in ELEMENTS if name not in without]))
    values = tuple(draw(st.lists(ELEMENTS[datatype], max_size=6)))
    shape = draw(st.sampled_from([(len(values),), (1, len(values)), (len(values), 1)]))
    return Tensor("text_input", datatype, shape, values)


@given(tensors())
def test_bytes_give_back_the_tensor(tensor: Tensor) -> None:
    assert from_raw(tensor.name, tensor.datatype, tensor.shape, to_raw(tensor)) == tensor


@given(tensors(), st.data())
def test_bytes_that_are_too_few_or_too_many_are_refused(tensor: Tensor, data: st.DataObject) -> None:
    raw = to_raw(tensor)
    cut = data.draw(st.integers(0, max(0, len(raw) - 1)))
    for wrong in (raw[:cut] if raw else b"\0", raw + b"\x01"):
        with pytest.raises(BadBody, match=r"inputs\.text_input"):
            from_raw(tensor.name, tensor.datatype, tensor.shape, wrong)


@given(tensors("FP16"), st.booleans())
def test_http_answers_read_as_requests_give_back_the_tensor(tensor: Tensor, binary: bool) -> None:
    asked = http_codec.InferBody(inputs=[], parameters={"binary_data_output": binary})
    body, size = http_codec.write_infer({}, [tensor], asked)
    header = json.loads(body[:size])
    header["inputs"] = header.pop("outputs")
    head = json.dumps(header).encode()
    again, _ = http_codec.read_infer(head + (body[size:] if size else b""), str(len(head)) if size else "")
    assert again.inputs == (tensor,)


@given(tensors("FP16"), st.booleans())
def test_grpc_answers_read_as_requests_give_back_the_tensor(tensor: Tensor, raw: bool) -> None:
    answer = grpc_codec.write_infer("m", "1", [tensor], raw=raw)
    request = inference_pb2.ModelInferRequest(id="1", raw_input_contents=answer.raw_output_contents)
    request.inputs.add().ParseFromString(answer.outputs[0].SerializeToString())  # the two are alike
    assert grpc_codec.read_infer(request).inputs == (tensor,)


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_a_decimal_number_stands_for_the_same_float(value: float) -> None:
    assert struct.pack("<f", decimal_of(value)) == struct.pack("<f", value)


@given(st.integers(-9999, 9999), st.integers(0, 4))
def test_a_decimal_number_is_the_one_that_was_written(digits: int, places: int) -> None:
    written = float(f"{digits}e-{places}")
    (sent,) = struct.unpack("<f", struct.pack("<f", written))
    assert decimal_of(sent) == written


def test_messages_are_in_no_pool_that_others_share() -> None:
    with pytest.raises(KeyError):
        Default().FindMessageTypeByName("inference.ModelInferRequest")
    theirs = FileDescriptorProto.FromString(inference_pb2.DESCRIPTOR.serialized_pb)
    theirs.name = "grpc_service.proto"
    theirs.message_type.add(name="MoreOfIt")
    file = Default().AddSerializedFile(theirs.SerializeToString())  # as Triton's client does
    assert file.message_types_by_name["MoreOfIt"].full_name == "inference.MoreOfIt"


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools is not installed")
def test_what_is_generated_is_up_to_date() -> None:
    names = [name for name, _ in regenerate.generated()]
    for name, text in regenerate.generated():
        kept = (regenerate.HERE / name).read_text()
        # Stubs are written a little differently by each version of the tool.
        assert name.endswith(".pyi") or kept == text, f"{name}: run `make proto`"
    assert sorted(names) == sorted(path.name for path in regenerate.HERE.glob("*_pb2.py*"))
    assert "grpc_tools" in sys.modules
