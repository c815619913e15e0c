"""KServe's v2 protocol over gRPC, with grpcio itself as the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import grpc
import grpc.aio
import pytest
from gateways import collector, idle, push_out, spans_of, start_engine
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.message_factory import GetMessageClass

from callboard.actors.gateway.config import GatewayConfig
from callboard.actors.gateway.keys import Scope, new_key
from callboard.actors.gateway.kserve.grpc_gateway import GrpcGateway
from callboard.actors.gateway.kserve.proto import health_pb2, inference_pb2, reflection_pb2
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.schemas.gateway import AskGateway
from callboard.schemas.serve import Generate, ListSessions
from callboard.schemas.serve_stats import GetStats

pytestmark = pytest.mark.anyio

EOF: Any = getattr(grpc.aio, "EOF")  # noqa: B009  (its stubs do not know it)
SERVICE = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
Request = inference_pb2.ModelInferRequest
Tensor = inference_pb2.ModelInferRequest.InferInputTensor
Metadata = inference_pb2.ModelMetadataResponse.TensorMetadata
Contents = inference_pb2.InferTensorContents


class Client:
    """Calls methods by their names."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel

    def method(self, name: str, service: Any = SERVICE) -> Any:
        method = service.methods_by_name[name]
        kinds = {(False, False): "unary_unary", (False, True): "unary_stream", (True, True): "stream_stream"}
        made = getattr(self.channel, kinds[method.client_streaming, method.server_streaming])
        return made(
            f"/{service.full_name}/{name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )

    async def ask(self, method: str, **fields: Any) -> Any:
        return await self.method(method)(GetMessageClass(SERVICE.methods_by_name[method].input_type)(**fields))


@asynccontextmanager
async def grpc_gateway(node: Node, **options: Any) -> AsyncIterator[str]:
    """Yields its host and port; in the end no call is under way."""
    models = options.pop("models", {"small": "engine.scheduler"})
    config = GatewayConfig(models=models, **options)
    ref = await node.spawn(GrpcGateway, config, name="grpc")
    url = (await ref.ask(AskGateway())).url
    yield url.partition("://")[2]
    with anyio.fail_after(10):
        while (await ref.ask(AskGateway())).open:
            await anyio.sleep(0.01)  # a call that its client cancelled is found out in a moment


@pytest.fixture
async def client(node: Node, long_path: Path) -> AsyncIterator[Client]:
    await start_engine(node, long_path)
    async with grpc_gateway(node, max_body_mib=1) as target:
        async with grpc.aio.insecure_channel(target) as channel:
            yield Client(channel)
    await idle(node)


def tensor(name: str, datatype: str, *values: Any) -> Tensor:
    field = {"BYTES": "bytes", "INT32": "int", "INT64": "int64", "FP32": "fp32", "BOOL": "bool"}[datatype]
    contents = Contents(**{f"{field}_contents": values})
    return Tensor(name=name, datatype=datatype, shape=[len(values)], contents=contents)


def asking(prompt: str, *settings: Tensor, id: str = "", **parameters: Any) -> Request:
    inputs = [tensor("text_input", "BYTES", prompt.encode()), *settings]
    request = Request(model_name="small", id=id, inputs=inputs)
    for name, value in parameters.items():
        kind = {bool: "bool", int: "int64", float: "double", str: "string"}[type(value)]
        setattr(request.parameters[name], f"{kind}_param", value)
    return request


def outputs(response: Any) -> dict[str, Any]:
    return {
        output.name: list(output.contents.bytes_contents or output.contents.int_contents) for output in response.outputs
    }


async def test_a_text_is_answered_as_on_the_bus(client: Client, node: Node) -> None:
    options = {"max_tokens": 8, "temperature": 0.9, "top_k": 20, "seed": 4}
    known = await node.actor("engine").ask(Generate(prompt="hello", **options))
    expected = {
        "text_output": [known.text.encode()],
        "finish_reason": [b"length"],
        "prompt_tokens": [known.usage.prompt_tokens],
        "completion_tokens": [8],
    }
    types = {"max_tokens": "INT32", "temperature": "FP32", "top_k": "INT32", "seed": "INT64"}
    settings = [tensor(name, types[name], value) for name, value in options.items()]
    infer = client.method("ModelInfer")
    by_inputs = await infer(asking("hello", *settings, id="x"))
    assert outputs(by_inputs) == expected
    assert (by_inputs.model_name, by_inputs.model_version, by_inputs.id) == ("small", "1", "x")
    assert outputs(await infer(asking("hello", **options))) == expected

    raw = Request(model_name="small", raw_input_contents=[b"\x05\0\0\0hello", (8).to_bytes(4, "little")])
    raw.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    raw.inputs.add(name="max_tokens", datatype="INT32", shape=[1])
    raw.outputs.add(name="text_output")
    for name in ("temperature", "seed", "top_k"):
        raw.parameters[name].CopyFrom(asking("", **options).parameters[name])
    answer = await infer(raw)
    assert list(answer.raw_output_contents) == [len(known.text.encode()).to_bytes(4, "little") + known.text.encode()]


async def test_the_server_and_its_models_say_what_they_are(client: Client, long_path: Path) -> None:
    assert (await client.ask("ServerLive")).live
    assert (await client.ask("ServerReady")).ready
    assert (await client.ask("ModelReady", name=str(long_path), version="1")).ready
    for name, version in (("nobody", ""), ("small", "2")):
        assert not (await client.ask("ModelReady", name=name, version=version)).ready
    assert (await client.ask("ServerMetadata")).name == "callboard"
    metadata = await client.ask("ModelMetadata", name="small")
    assert metadata.inputs[0] == Metadata(name="text_input", datatype="BYTES", shape=[-1])
    config = (await client.ask("ModelConfig", name="small")).config
    assert config.model_transaction_policy.decoupled
    assert [one.name for one in config.input if not one.optional] == ["text_input"]
    assert config.input[0].data_type == inference_pb2.TYPE_STRING
    assert [one.name for one in config.output] == [one.name for one in metadata.outputs]
    assert "small" in [one.name for one in (await client.ask("RepositoryIndex")).models]


async def test_a_session_keeps_what_its_text_computed(client: Client, node: Node) -> None:
    settings = [tensor("session_id", "BYTES", b"mine"), tensor("session_ttl_s", "FP32", 50.0)]
    infer = client.method("ModelInfer")
    first = outputs(await infer(asking("hello all " * 20, *settings, max_tokens=1)))
    await push_out(node)
    before = await node.actor("engine").ask(GetStats())
    await infer(asking("hello all " * 20 + "and now?", *settings, max_tokens=1))
    after = await node.actor("engine").ask(GetStats())
    assert after.cached_tokens - before.cached_tokens > first["prompt_tokens"][0] - 4
    (session,) = (await node.actor("engine.scheduler").ask(ListSessions())).sessions
    assert (session.session, 40 < session.expires_in_s <= 50) == ("mine", True)


async def test_a_trace_goes_through_and_comes_back(client: Client, node: Node) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    carried = (("traceparent", f"00-{trace}-{parent}-01"), ("tracestate", "vendor=1"))
    request = asking("hello", max_tokens=2)

    async def in_stream(metadata: Any) -> Any:
        call = client.method("ModelStreamInfer")(metadata=metadata)
        await call.write(request)
        await call.done_writing()
        assert not [response.error_message async for response in call if response.error_message]
        return call

    async def at_once(metadata: Any) -> Any:
        call = client.method("ModelInfer")(request, metadata=metadata)
        await call
        return call

    for name, ask in (("ModelInfer", at_once), ("ModelStreamInfer", in_stream)):
        node.tracer.__init__(node.name)
        told = dict(await (await ask(carried)).initial_metadata())
        version, same, span, flags = told["traceparent"].split("-")
        assert (version, same, flags) == ("00", trace, "01")
        spans, _ = node.tracer.spans(trace)
        (first,) = [one for one in spans if one.name == f"inference.GRPCInferenceService/{name}"]
        assert (first.span, first.parent) == (span, parent)
        (handled,) = [one for one in spans if one.name == "serve.generate" and one.kind.value == "handle"]
        parents = {one.span: one.parent for one in spans}
        at = handled.span
        while at in parents:
            at = parents[at]
        assert at == parent
        untraced = await ask((("traceparent", "nonsense"),))
        assert "traceparent" not in dict(await untraced.initial_metadata())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.method("ModelInfer")(Request(model_name="nobody", inputs=request.inputs), metadata=carried)
    told = dict(refused.value.initial_metadata())
    assert str(told["traceparent"]).startswith(f"00-{trace}-")
    failed = [one for one in node.tracer.spans(trace)[0] if one.name.endswith("/ModelInfer")]
    assert [one.error for one in failed] == ["gateway.model"]


async def test_traces_of_calls_go_to_a_collector(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path)
    trace = "2af7651916cd43dd8448eb211c80319c"
    async with collector() as (otel, came), grpc_gateway(node, otel=otel) as target:
        async with grpc.aio.insecure_channel(target) as channel:
            metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
            await Client(channel).method("ModelInfer")(asking("hello", max_tokens=1), metadata=metadata)
        with anyio.fail_after(20):
            _, body = await came.get()
    assert {span["traceId"] for span in spans_of(body)} == {trace}
    assert {"inference.GRPCInferenceService/ModelInfer", "serve.generate"} <= {one["name"] for one in spans_of(body)}


async def test_streams_bring_pieces_with_their_requests_ids(client: Client, node: Node) -> None:
    stream = client.method("ModelStreamInfer")()
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "seed": 3}
    for id in ("hello", "all"):
        await stream.write(asking(id, tensor("stream", "BOOL", True), id=id, **options))
    await stream.write(asking("hello", id="whole", **options))
    await stream.write(asking("hello", id="wrong", top_p=7.0))
    await stream.done_writing()
    texts: dict[str, bytes] = {}
    finals: list[str] = []
    counts: dict[str, int] = {}
    async for response in stream:
        answer = response.infer_response
        if response.error_message:
            assert (answer.id, "top_p" in response.error_message) == ("wrong", True)
            continue
        found = outputs(answer)
        texts[answer.id] = texts.get(answer.id, b"") + found["text_output"][0]
        counts[answer.id] = counts.get(answer.id, 0) + 1
        if answer.parameters["triton_final_response"].bool_param:
            finals.append(answer.id)
            assert found["completion_tokens"] == [12]
    for id in ("hello", "all"):
        assert texts[id].decode() == (await node.actor("engine").ask(Generate(prompt=id, **options))).text
        assert counts[id] > 2
    assert (texts["whole"], counts["whole"]) == (texts["hello"], 1)
    assert sorted(finals) == ["all", "hello", "whole"]


async def test_errors_are_statuses(client: Client) -> None:
    infer = client.method("ModelInfer")

    async def refused(request: Request) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await infer(request)
        return error.value.code(), error.value.details() or ""

    code, details = await refused(Request(model_name="nobody", inputs=asking("a").inputs))
    assert (code, "there is no model 'nobody'; there are: " in details) == (grpc.StatusCode.NOT_FOUND, True)
    code, details = await refused(asking("a", tensor("max_tokens", "FP32", 3.0)))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert "inputs.max_tokens.datatype: expected INT32, got FP32" in details
    code, details = await refused(asking("a", stream=True))
    assert (code, "ModelStreamInfer" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, _ = await refused(asking("a" * (2 << 20)))
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    short = asking("a")
    short.raw_input_contents.extend([b"", b""])
    assert "expected 1, one for each input, got 2" in (await refused(short))[1]
    del short.raw_input_contents[:]
    short.inputs[0].ClearField("contents")
    short.raw_input_contents.append(b"\x09\0\0\0a")
    assert "its element 0 ends after the data" in (await refused(short))[1]


async def test_a_full_engine_says_when_to_come_again(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path, max_running=1, max_waiting=1)
    async with grpc_gateway(node) as target, grpc.aio.insecure_channel(target) as channel:
        infer = Client(channel).method("ModelInfer")
        calls = [infer(asking("hello", max_tokens=1000, ignore_eos=True)) for _ in range(3)]
        codes = [asyncio.ensure_future(call.code()) for call in calls]
        (first,), _ = await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        assert first.result() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(await calls[codes.index(first)].trailing_metadata())["retry-after"]) >= 1
        for call in calls:
            call.cancel()
    await idle(node)


async def test_a_client_that_never_reads_its_stream_loses_its_request(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path, num_blocks=2000)
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))  # the client's own room is small
    async with grpc_gateway(node, write_timeout_s=0.2) as target:
        async with grpc.aio.insecure_channel(target, options=narrow) as channel:
            stream = Client(channel).method("ModelStreamInfer")()
            wide = asking("hello", tensor("stream", "BOOL", True), id="x" * 2000, max_tokens=1500, ignore_eos=True)
            await stream.write(wide)
            with anyio.fail_after(30):
                while (await node.actor("grpc").ask(AskGateway())).requests != 1:
                    await anyio.sleep(0.01)
                while (await node.actor("grpc").ask(AskGateway())).open:
                    await anyio.sleep(0.01)
            stats = await idle(node)
            assert (stats.aborted, stats.finished) == (1, 0)
            stream.cancel()


async def test_a_cancelled_call_ends_its_request_at_once(client: Client, node: Node) -> None:
    request = asking("hello", tensor("stream", "BOOL", True), max_tokens=1000, ignore_eos=True)
    stream = client.method("ModelStreamInfer")()
    await stream.write(request)
    assert (await stream.read()).error_message == ""
    stream.cancel()
    stats = await idle(node)
    assert (stats.aborted, stats.finished) == (1, 0)
    call = client.method("ModelInfer")(asking("hello", max_tokens=1000, ignore_eos=True))
    with anyio.fail_after(10):
        while not (await node.actor("engine").ask(GetStats())).running:
            await anyio.sleep(0.005)
    call.cancel()
    stats = await idle(node)
    assert (stats.aborted, stats.finished) == (2, 0)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await client.method("ModelInfer")(asking("hello", max_tokens=1000, ignore_eos=True), timeout=0.2)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await idle(node)).aborted == 3


async def test_what_is_under_way_finishes_when_the_gateway_ends(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path)
    ref = await node.spawn(GrpcGateway, GatewayConfig(models={"small": "engine.scheduler"}), name="grpc")
    url = (await ref.ask(AskGateway())).url
    async with grpc.aio.insecure_channel(url.partition("://")[2]) as channel:
        client = Client(channel)
        stream = client.method("ModelStreamInfer")()
        await stream.write(asking("hello", tensor("stream", "BOOL", True), max_tokens=200, ignore_eos=True))
        await stream.done_writing()
        last = (await stream.read()).infer_response
        async with anyio.create_task_group() as group:
            group.start_soon(node.stop, "grpc")
            while (response := await stream.read()) is not EOF:
                last = response.infer_response
        assert outputs(last)["completion_tokens"] == [200]
        with pytest.raises(grpc.aio.AioRpcError) as gone:
            await client.ask("ServerLive")
        assert gone.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_health_is_told_and_watched(node: Node, long_path: Path) -> None:
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    status = health_pb2.HealthCheckResponse.ServingStatus
    async with grpc_gateway(node) as target, grpc.aio.insecure_channel(target) as channel:
        client = Client(channel)
        check = client.method("Check", health)
        assert (await check(health_pb2.HealthCheckRequest())).status == status.NOT_SERVING
        watch = client.method("Watch", health)(health_pb2.HealthCheckRequest(service=SERVICE.full_name))
        assert (await watch.read()).status == status.NOT_SERVING
        await start_engine(node, long_path)
        with anyio.fail_after(20):
            assert (await watch.read()).status == status.SERVING
        watch.cancel()
        assert (await check(health_pb2.HealthCheckRequest())).status == status.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await check(health_pb2.HealthCheckRequest(service="nobody"))
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


async def test_services_describe_themselves(client: Client) -> None:
    request = reflection_pb2.ServerReflectionRequest
    reflection = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    stream = client.method("ServerReflectionInfo", reflection)()
    await stream.write(request(list_services="*"))
    listed = {service.name for service in (await stream.read()).list_services_response.service}
    assert listed == {"inference.GRPCInferenceService", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"}
    for name in listed:
        await stream.write(request(file_containing_symbol=name))
        (described,) = (await stream.read()).file_descriptor_response.file_descriptor_proto
        file = FileDescriptorProto.FromString(described)
        assert [f"{file.package}.{service.name}" for service in file.service] == [name]
        await stream.write(request(file_by_filename=file.name))
        assert list((await stream.read()).file_descriptor_response.file_descriptor_proto) == [described]
    await stream.write(request(file_containing_symbol="no.such.Thing"))
    assert (await stream.read()).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    await stream.done_writing()


async def test_a_certificate_makes_it_tls(node: Node, long_path: Path, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(cert))
    await anyio.run_process(["openssl", "req", "-x509", *curve, *names, *files])
    async with grpc_gateway(node, tls_cert=str(cert), tls_key=str(key)) as target:
        trusted = grpc.ssl_channel_credentials(cert.read_bytes())
        async with grpc.aio.secure_channel(target, trusted) as channel:
            assert (await Client(channel).ask("ServerLive")).live
        async with grpc.aio.insecure_channel(target) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await Client(channel).ask("ServerLive")


async def test_what_it_cannot_start_with_is_said(node: Node, tmp_path: Path) -> None:
    async with grpc_gateway(node) as target:
        port = int(target.rpartition(":")[2])
        with pytest.raises(ConfigError, match="cannot listen"):
            await node.spawn(GrpcGateway, GatewayConfig(port=port), name="second")
    with pytest.raises(ConfigError, match="cannot be read"):
        await node.spawn(GrpcGateway, GatewayConfig(tls_cert=str(tmp_path / "no"), tls_key="no"), name="third")


async def test_keys_open_what_their_scopes_say(node: Node, long_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys" / "keys.json"
    good = new_key(file, "good", (Scope.CHAT,), requests_per_minute=3)
    other = new_key(file, "other", (Scope.METRICS,))
    await start_engine(node, long_path)
    async with grpc_gateway(node, keys_file=str(file)) as target, grpc.aio.insecure_channel(target) as channel:
        client = Client(channel)
        assert (await client.ask("ServerLive")).live
        infer = client.method("ModelInfer")
        request = asking("hello", max_tokens=2)

        async def refused(*metadata: tuple[str, str]) -> grpc.StatusCode:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await infer(request, metadata=metadata)
            return error.value.code()

        assert await refused() == grpc.StatusCode.UNAUTHENTICATED
        assert await refused(("authorization", "Bearer cb-nonsense")) == grpc.StatusCode.UNAUTHENTICATED
        assert await refused(("x-api-key", other)) == grpc.StatusCode.PERMISSION_DENIED
        bearer = ("authorization", f"Bearer {good}")
        assert outputs(await infer(request, metadata=(bearer,)))["completion_tokens"] == [2]
        stream = client.method("ModelStreamInfer")(metadata=(bearer,))
        errors: list[str] = []
        for _ in range(3):  # one of the three a minute is gone
            await stream.write(request)
            errors.append((await stream.read()).error_message)
        assert [bool(error) for error in errors] == [False, False, True]
        assert "'good' has used up its requests" in errors[2]
        await stream.done_writing()
        assert await refused(bearer) == grpc.StatusCode.RESOURCE_EXHAUSTED
