"""Triton's own clients, unmodified, each by each: run by a Python that has them, prints what they were told as JSON.

`triton_clients.py HTTP GRPC MODEL`: the addresses as host:port.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from typing import Any

import numpy
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

OPTIONS: dict[str, tuple[str, Any]] = {
    "max_tokens": ("INT32", numpy.int32(8)),
    "temperature": ("FP32", numpy.float32(0.9)),
    "seed": ("INT64", numpy.int64(4)),
}


def inputs(client: Any, *texts: str, stream: bool | None = None, binary: bool = True) -> list[Any]:
    def filled(name: str, datatype: str, values: Any) -> Any:
        one = client.InferInput(name, list(values.shape), datatype)
        extra = {"binary_data": binary} if client is tritonclient.http else {}
        one.set_data_from_numpy(values, **extra)
        return one

    made = [filled("text_input", "BYTES", numpy.array([text.encode() for text in texts], dtype=object))]
    made += [filled(name, datatype, numpy.array([value])) for name, (datatype, value) in OPTIONS.items()]
    if stream is not None:
        made.append(filled("stream", "BOOL", numpy.array([stream])))
    return made


def texts_of(result: Any) -> list[str]:
    assert result.as_numpy("completion_tokens").tolist() == [8] * len(result.as_numpy("text_output"))
    texts = result.as_numpy("text_output")
    return [text if isinstance(text, str) else text.decode() for text in texts]  # of JSON it makes str


def said_of(client: Any, model: str) -> dict[str, Any]:
    metadata, config = client.get_model_metadata(model), client.get_model_config(model)
    if not isinstance(metadata, dict):
        metadata = {"inputs": [{"name": one.name} for one in metadata.inputs]}
        config = {"input": [{"name": one.name} for one in config.config.input]}
    assert [one["name"] for one in metadata["inputs"]] == [one["name"] for one in config["input"]]
    index = client.get_model_repository_index()
    names = [one["name"] for one in index] if isinstance(index, list) else [one.name for one in index.models]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model": client.is_model_ready(model),
        "other": client.is_model_ready("nobody"),
        "listed": model in names,
        "refused": refused(lambda: client.infer("nobody", [])),
    }


def refused(call: Any) -> str:
    try:
        call()
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    raise AssertionError("it was not refused")


def over_http(address: str, model: str) -> dict[str, Any]:
    with tritonclient.http.InferenceServerClient(address) as client:
        told = said_of(client, model)
        as_json = [
            tritonclient.http.InferRequestedOutput(name, binary_data=False)
            for name in ("text_output", "completion_tokens")
        ]
        told["texts"] = [
            texts_of(client.infer(model, inputs(tritonclient.http, "hello", "all"), model_version="1", request_id="3")),
            texts_of(client.infer(model, inputs(tritonclient.http, "hello", "all", binary=False), outputs=as_json)),
            texts_of(
                client.infer(model, inputs(tritonclient.http, "hello", "all"), request_compression_algorithm="gzip")
            ),
            texts_of(
                client.infer(model, inputs(tritonclient.http, "hello", "all"), request_compression_algorithm="deflate")
            ),
            texts_of(client.async_infer(model, inputs(tritonclient.http, "hello", "all")).get_result()),
        ]
    return told


def over_grpc(address: str, model: str) -> dict[str, Any]:
    with tritonclient.grpc.InferenceServerClient(address) as client:
        told = said_of(client, model)
        wanted = [tritonclient.grpc.InferRequestedOutput(name) for name in ("text_output", "completion_tokens")]
        answers: queue.Queue[Any] = queue.Queue()
        told["texts"] = [
            texts_of(client.infer(model, inputs(tritonclient.grpc, "hello", "all"))),
            texts_of(
                client.infer(
                    model, inputs(tritonclient.grpc, "hello", "all"), outputs=wanted, compression_algorithm="gzip"
                )
            ),
        ]
        client.async_infer(
            model, inputs(tritonclient.grpc, "hello", "all"), lambda result, error: answers.put((result, error))
        )
        result, error = answers.get(timeout=30)
        assert error is None
        told["texts"].append(texts_of(result))

        client.start_stream(lambda result, error: answers.put((result, error)))
        for id in ("hello", "all"):
            client.async_stream_infer(
                model, inputs(tritonclient.grpc, id, stream=True), request_id=id, enable_empty_final_response=True
            )
        streamed, left = {"hello": [], "all": []}, 2
        while left:
            result, error = answers.get(timeout=30)
            assert error is None
            response = result.get_response()
            streamed[response.id].append(result.as_numpy("text_output")[0].decode())
            left -= response.parameters["triton_final_response"].bool_param
        client.async_stream_infer("nobody", inputs(tritonclient.grpc, "a"))
        result, error = answers.get(timeout=30)
        told["refused in a stream"] = str(error)
        client.async_stream_infer(model, inputs(tritonclient.grpc, "hello", stream=True))
        answers.get(timeout=30)
        client.stop_stream(cancel_requests=True)
    assert min(map(len, streamed.values())) > 2
    told["streamed"] = ["".join(streamed["hello"]), "".join(streamed["all"])]
    return told


async def in_asyncio(http: str, grpc: str, model: str) -> dict[str, Any]:
    async with tritonclient.http.aio.InferenceServerClient(http) as client:
        by_http = texts_of(await client.infer(model, inputs(tritonclient.http, "hello", "all")))
    async with tritonclient.grpc.aio.InferenceServerClient(grpc) as client:
        by_grpc = texts_of(await client.infer(model, inputs(tritonclient.grpc, "hello", "all")))

        async def asked() -> Any:
            yield {"model_name": model, "inputs": inputs(tritonclient.grpc, "hello", stream=True)}

        streamed = ""
        async for result, error in client.stream_infer(asked()):
            assert error is None
            streamed += result.as_numpy("text_output")[0].decode()
    return {"texts": [by_http, by_grpc], "streamed": streamed}


def fields() -> dict[str, Any]:
    """The numbers of the fields, as Triton's client has them."""
    from tritonclient.grpc import service_pb2

    found: dict[str, Any] = {}

    def note(kind: Any) -> None:
        found[kind.full_name] = {one.name: [one.number, one.type] for one in kind.fields}
        for inner in kind.nested_types:
            note(inner)

    for file in (service_pb2.DESCRIPTOR, *service_pb2.DESCRIPTOR.dependencies):
        for kind in file.message_types_by_name.values():
            note(kind)
    return found


def main() -> None:
    http, grpc, model = sys.argv[1:]
    told = {
        "http": over_http(http, model),
        "grpc": over_grpc(grpc, model),
        "aio": asyncio.run(in_asyncio(http, grpc, model)),
        "fields": fields(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
