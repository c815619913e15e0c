"""A gateway in operation: whether it is well, what it counts, how long it waits, what it does when too many come."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import openai
import pytest
from gateways import collector, gateway, idle, spans_of, start_engine
from prometheus_client.parser import text_string_to_metric_families

from callboard.actors.gateway.config import GatewayConfig
from callboard.actors.gateway.gateway import Gateway
from callboard.runtime.errors import ConfigError
from callboard.runtime.node import Node
from callboard.schemas.gateway import AskGateway

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana" / "callboard.json"


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20) as http:
        yield http


def samples(text: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """By metric, and by labels; what is no exposition raises ValueError."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            assert sample.name not in found or tuple(sorted(sample.labels.items())) not in found[sample.name]
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def scrape(http: httpx2.AsyncClient, url: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    answer = await http.get(f"{url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return samples(answer.text)


async def test_health_names_what_is_loading_until_it_serves(
    node: Node, long_path: Path, http: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    from callboard.actors.serve import engine

    held = asyncio.Event()
    look = engine.Engine._start_replicas

    async def slowly(self: Any, *arguments: Any) -> Any:
        await held.wait()
        return await look(self, *arguments)

    monkeypatch.setattr(engine.Engine, "_start_replicas", slowly)
    async with gateway(node) as url:
        nothing = await http.get(f"{url}/health")
        assert (nothing.status_code, nothing.json()) == (503, {"status": "no model", "models": [], "loading": []})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start_engine, node, long_path)
            with anyio.fail_after(10):
                while (loading := await http.get(f"{url}/health")).json()["status"] != "loading":
                    assert loading.status_code == 503
            assert loading.status_code == 503
            assert loading.headers["retry-after"] == "1"
            (one,) = loading.json()["loading"]
            assert (one["engine"], one["state"]) == ("engine", "starting")
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", one["since"])
            assert 0 <= one["for_s"] < 30
            assert (await http.get(f"{url}/ready")).status_code == 503
            refused = await http.post(f"{url}/v1/completions", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway.loading")
            held.set()
        with anyio.fail_after(10):
            while (well := await http.get(f"{url}/health")).status_code != 200:
                pass
        assert well.json() == {"status": "ok", "models": [str(long_path)], "loading": []}
        assert (await http.get(f"{url}/ready")).status_code == 200
        assert (await http.get(f"{url}/ready", params={"model": str(long_path)})).status_code == 200
        assert (await http.get(f"{url}/ready", params={"model": "other"})).status_code == 503


async def test_metrics_have_the_names_that_dashboards_read(
    node: Node, long_path: Path, http: httpx2.AsyncClient
) -> None:
    await start_engine(node, long_path)
    async with gateway(node) as url:
        client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        model = str(long_path)
        whole = await client.completions.create(
            model=model, prompt="hello", max_tokens=7, extra_body={"ignore_eos": True}
        )
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}], max_tokens=5, stream=True,
            stream_options={"include_usage": True}, extra_body={"ignore_eos": True},
        )  # fmt: skip
        usages = [chunk.usage async for chunk in stream if chunk.usage is not None]
        await client.close()
        assert whole.usage is not None
        prompts = [whole.usage.prompt_tokens, usages[0].prompt_tokens]
        found = await scrape(http, url)
        labels = (("engine", "engine.scheduler"), ("model_name", model))

        assert found["vllm:num_requests_running"][labels] == 0
        assert found["vllm:num_requests_waiting"][labels] == 0
        assert found["vllm:kv_cache_usage_perc"][labels] == 0
        assert found["vllm:prompt_tokens_total"][labels] == sum(prompts)
        assert found["vllm:generation_tokens_total"][labels] == 12
        assert found["vllm:prefix_cache_queries_total"][labels] == sum(prompts)
        assert 0 <= found["vllm:prefix_cache_hits_total"][labels] <= sum(prompts)
        assert found["vllm:num_preemptions_total"][labels] == 0
        length = (labels[0], ("finished_reason", "length"), labels[1])
        assert found["vllm:request_success_total"][length] == 2
        for name in ("time_to_first_token", "e2e_request_latency", "request_time_per_output_token"):
            assert found[f"vllm:{name}_seconds_count"][labels] == 2
            assert found[f"vllm:{name}_seconds_sum"][labels] > 0
        for name in ("queue", "prefill", "decode", "inference"):
            assert found[f"vllm:request_{name}_time_seconds_count"][labels] == 2
        parts = [found[f"vllm:request_{name}_time_seconds_sum"][labels] for name in ("queue", "inference")]
        assert sum(parts) == pytest.approx(found["vllm:e2e_request_latency_seconds_sum"][labels])
        assert found["vllm:request_prefill_time_seconds_sum"][labels] > 0
        # A piece of a stream may hold more than one token, the first one too.
        assert 6 < found["vllm:inter_token_latency_seconds_count"][labels] <= 6 + 4
        assert found["vllm:request_generation_tokens_sum"][labels] == 12
        assert found["vllm:request_prompt_tokens_sum"][labels] == sum(prompts)
        buckets = [
            value for key, value in found["vllm:time_to_first_token_seconds_bucket"].items() if set(labels) <= set(key)
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] == 2

        route = (("gateway", node.name), ("method", "POST"), ("route", "/v1/chat/completions"), ("status", "200"))
        assert found["callboard_http_requests_total"][route] == 1
        own = (("actor", "engine.scheduler"), ("kind", "serve.scheduler"), ("node", node.name))
        assert found["callboard_mailbox_messages"][own] == 0
        assert found["callboard_actor_restarts_total"][own] == 0
        assert 0 < found["callboard_bus_flush_seconds"][("gateway", node.name),] < 5


async def test_an_answer_that_is_given_up_is_counted_as_such(
    node: Node, long_path: Path, http: httpx2.AsyncClient
) -> None:
    await start_engine(node, long_path)
    async with gateway(node) as url:
        body = {**BODY, "max_tokens": 1000, "ignore_eos": True, "stream": True}
        async with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                break
        await idle(node)
        key = (("engine", "engine.scheduler"), ("finished_reason", "abort"), ("model_name", str(long_path)))
        with anyio.fail_after(10):
            while (await scrape(http, url))["vllm:request_success_total"][key] != 1:
                pass


async def test_every_panel_of_the_dashboard_shows_what_there_is(
    node: Node, long_path: Path, http: httpx2.AsyncClient, tmp_path: Path
) -> None:
    from callboard.actors.gateway.keys import new_key

    await start_engine(node, long_path)
    secret = new_key(tmp_path / "keys.json", "grafana", ["chat", "metrics"])  # pyright: ignore[reportArgumentType]
    async with gateway(node, keys_file=str(tmp_path / "keys.json")) as url:
        http.headers["authorization"] = f"Bearer {secret}"
        assert (await http.post(f"{url}/v1/completions", json=BODY)).status_code == 200
        async with Node(bus=node.require_links().options) as other:  # whose answers are timed, once it is heard of
            with anyio.fail_after(20):
                while other.name not in node.require_links().peers.known:
                    await anyio.sleep(0.01)
            names = set(await scrape(http, url))
    dashboard = json.loads(DASHBOARD.read_text())
    exprs = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(exprs) > 10
    for expr in exprs:
        metrics = set(re.findall(r"\b(?:vllm:|callboard_)\w+", expr))
        assert metrics, expr
        assert metrics <= names, f"{expr}: there is no {', '.join(metrics - names)}"
    queries = [variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    for query in queries:
        assert set(re.findall(r"\b(?:vllm:|callboard_)\w+", str(query))) <= names


async def test_a_trace_goes_through_and_comes_back(node: Node, long_path: Path, http: httpx2.AsyncClient) -> None:
    await start_engine(node, long_path)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    async with gateway(node) as url:
        for body in (BODY, {**BODY, "stream": True}):
            node.tracer.__init__(node.name)
            answer = await http.post(
                f"{url}/v1/completions", json=body, headers={"traceparent": f"00-{trace}-{parent}-01"}
            )
            assert answer.status_code == 200
            version, same, span, flags = answer.headers["traceparent"].split("-")
            assert (version, same, flags) == ("00", trace, "01")
            spans, _ = node.tracer.spans(trace)
            by_name = {one.name: one for one in spans}
            first = by_name["POST /v1/completions"]
            assert (first.span, first.parent) == (span, parent)
            (handled,) = [one for one in spans if one.name == "serve.generate" and one.kind.value == "handle"]
            parents = {one.span: one.parent for one in spans}
            at = handled.span
            while at in parents:
                at = parents[at]
            assert at == parent
        untraced = await http.post(f"{url}/v1/completions", json=BODY, headers={"traceparent": "nonsense"})
        assert untraced.status_code == 200
        assert "traceparent" not in untraced.headers


async def test_traces_go_to_a_collector(node: Node, long_path: Path, http: httpx2.AsyncClient) -> None:
    await start_engine(node, long_path)
    trace = "1af7651916cd43dd8448eb211c80319c"
    async with collector() as (otel, came), gateway(node, otel=otel) as url:
        # An unsampled one stays here.
        for flags, one in (("00", "2" * 32), ("01", trace)):
            headers = {"traceparent": f"00-{one}-b7ad6b7169203331-{flags}"}
            assert (await http.post(f"{url}/v1/completions", json=BODY, headers=headers)).status_code == 200
        with anyio.fail_after(20):
            line, body = await came.get()
    assert line == b"POST /v1/traces HTTP/1.1"
    spans = spans_of(body)
    assert {span["traceId"] for span in spans} == {trace}
    assert {"POST /v1/completions", "serve.generate"} <= {span["name"] for span in spans}
    with pytest.raises(ConfigError, match="no http address"):
        await node.spawn(Gateway, GatewayConfig(otel="localhost"), name="other")


async def test_request_ids_come_back(node: Node, http: httpx2.AsyncClient) -> None:
    async with gateway(node) as url:
        assert (await http.get(f"{url}/health", headers={"x-request-id": "mine-1"})).headers["x-request-id"] == "mine-1"
        first, second = [(await http.get(f"{url}/health")).headers["x-request-id"] for _ in range(2)]
        assert first != second


# Time and room


async def test_a_connection_that_says_nothing_or_dribbles_is_closed(node: Node, http: httpx2.AsyncClient) -> None:
    async with gateway(node, header_timeout_s=0.3) as url:
        host, port = url.removeprefix("http://").split(":")

        async def closed(*pieces: bytes) -> bytes:
            """What comes back until the end; each piece is sent when a while has passed."""
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await anyio.sleep(0.1)
                with anyio.fail_after(15):
                    return await reader.read()
            except ConnectionError:
                return b""
            finally:
                writer.close()

        assert await closed() == b""
        assert await closed(*[b"GET /health HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n", b"c: d\r\n"]) == b""
        # The head of a second request on one connection is awaited as long.
        head = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        twice = await closed(head, b"GET /he")
        assert twice.startswith(b"HTTP/1.1 503")
        assert twice.count(b"HTTP/1.1") == 1
        # Others are not held up meanwhile, and one that idles between requests is let be.
        assert (await http.get(f"{url}/health")).status_code == 503
        await anyio.sleep(0.5)
        assert (await http.get(f"{url}/health")).status_code == 503


async def test_a_body_that_does_not_come_is_given_up(node: Node) -> None:
    async with gateway(node, body_timeout_s=0.3) as url:
        host, port = url.removeprefix("http://").split(":")
        for path, marked in (("/v1/completions", b'"code":"gateway.slow"'), ("/v1/messages", b'"type":"error"')):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
            with anyio.fail_after(15):
                said = await reader.read()
            assert said.startswith(b"HTTP/1.1 408")
            assert b"connection: close" in said.lower()
            assert marked in said
            writer.close()


async def test_more_connections_than_there_is_room_for_are_refused(node: Node, long_path: Path) -> None:
    await start_engine(node, long_path)
    async with gateway(node, max_connections=2) as url:
        host, port = url.removeprefix("http://").split(":")
        idle_ones = [await asyncio.open_connection(host, int(port)) for _ in range(2)]
        async with httpx2.AsyncClient(timeout=10) as http:
            refused = await http.post(f"{url}/v1/completions", json=BODY)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "gateway.full")
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
        # Far beyond, a connection is closed without a word.
        more = [await asyncio.open_connection(host, int(port)) for _ in range(6)]
        with anyio.fail_after(15), pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await more[-1][0].readexactly(1)
        for _, writer in [*idle_ones, *more]:
            writer.close()
        async with httpx2.AsyncClient(timeout=10) as http:
            with anyio.fail_after(10):
                while (await http.post(f"{url}/v1/completions", json=BODY)).status_code != 200:
                    await anyio.sleep(0.01)  # until the server has seen them close


# Ways in


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one that vouches for itself, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=gateway", "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


async def test_https_with_a_certificate_of_ones_own(
    node: Node, long_path: Path, certificate: tuple[Path, Path]
) -> None:
    await start_engine(node, long_path)
    cert, key = certificate
    async with gateway(node, tls_cert=str(cert), tls_key=str(key)) as url:
        assert url.startswith("https://127.0.0.1:")
        trusting = ssl.create_default_context(cafile=str(cert))
        async with httpx2.AsyncClient(verify=trusting) as http:
            client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", http_client=http, max_retries=0)
            answer = await client.completions.create(model=str(long_path), prompt="hello", max_tokens=3)
            assert answer.usage is not None
        async with httpx2.AsyncClient() as http:
            with pytest.raises(httpx2.ConnectError):
                await http.get(f"{url}/health")
        done = await anyio.run_process(["curl", "--silent", "--cacert", str(cert), f"{url}/health"])
        assert json.loads(done.stdout)["status"] == "ok"


async def test_files_that_are_no_certificate_keep_it_from_starting(node: Node, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    with pytest.raises(ConfigError, match=r"cert\.pem"):
        async with gateway(node, tls_cert=str(tmp_path / "cert.pem"), tls_key=str(tmp_path / "none.pem")):
            pass


async def test_pages_of_other_origins_may_ask_only_where_they_are_let(node: Node, http: httpx2.AsyncClient) -> None:
    asks = {"origin": "https://page.example", "access-control-request-method": "POST"}
    async with gateway(node) as url:
        assert "access-control-allow-origin" not in (await http.options(f"{url}/v1/models", headers=asks)).headers
        said = await http.get(f"{url}/v1/models", headers={"origin": "https://page.example"})
        assert "access-control-allow-origin" not in said.headers
    await node.stop("http")
    async with gateway(node, cors_origins=("https://page.example",)) as url:
        let = await http.options(f"{url}/v1/models", headers=asks)
        assert (let.status_code, let.headers["access-control-allow-origin"]) == (200, "https://page.example")
        other = await http.get(f"{url}/v1/models", headers={"origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers


async def test_answers_go_out_at_once(node: Node, http: httpx2.AsyncClient) -> None:
    """Without this, the system holds small pieces back until the last one is acknowledged: 40 ms for each answer."""
    url = await spawned(node)
    await http.get(f"{url}/health")
    server: Any = node.actors["http"]
    (connection,) = server._instance._server.server_state.connections
    assert connection.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Its end


async def test_a_gateway_that_ends_finishes_what_is_under_way_and_may_start_again(
    node: Node, long_path: Path, http: httpx2.AsyncClient
) -> None:
    await start_engine(node, long_path)
    url = await spawned(node)
    body = {**BODY, "max_tokens": 300, "ignore_eos": True, "stream": True}
    async with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        stopping = asyncio.create_task(node.stop("http"))
        rest = [line async for line in lines if line]
        await stopping
    assert rest[-1] == "data: [DONE]"
    with pytest.raises(httpx2.ConnectError):
        await http.get(f"{url}/health")
    assert await spawned(node, port=int(url.rpartition(":")[2])) == url
    assert (await http.get(f"{url}/health")).status_code == 200
    assert (await idle(node)).aborted == 0


async def spawned(node: Node, **options: Any) -> str:
    return (await (await node.spawn(Gateway, GatewayConfig(**options), name="http")).ask(AskGateway())).url


async def test_what_does_not_end_in_time_is_cut_off(node: Node, long_path: Path, http: httpx2.AsyncClient) -> None:
    await start_engine(node, long_path)
    body = {**BODY, "max_tokens": 1100, "ignore_eos": True, "stream": True}
    url = await spawned(node)
    async with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
        lines = answer.aiter_lines()
        assert (await anext(lines)).startswith("data: ")
        await node.stop("http", 0.2)
        with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
            [line async for line in lines]
    assert (await idle(node)).aborted == 1


async def test_the_calls_of_a_grpc_gateway_are_counted_too(
    node: Node, long_path: Path, http: httpx2.AsyncClient
) -> None:
    import grpc.aio

    from callboard.actors.gateway.kserve.grpc_gateway import GrpcGateway
    from callboard.actors.gateway.kserve.proto import inference_pb2 as pb

    await start_engine(node, long_path)
    kserve = await node.spawn(GrpcGateway, GatewayConfig(models={"tiny": "engine"}), name="kserve")
    target = (await kserve.ask(AskGateway())).url.removeprefix("grpc://")
    request = pb.ModelInferRequest(model_name="tiny")
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hello")
    request.parameters["max_tokens"].int64_param = 3
    async with gateway(node) as url, grpc.aio.insecure_channel(target) as channel:
        infer = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        await infer(request)
        request.model_name = "none"
        with pytest.raises(grpc.aio.AioRpcError):
            await infer(request)
        found = await scrape(http, url)
    calls = found["callboard_grpc_requests_total"]
    here = (("gateway", "kserve"), ("method", "ModelInfer"))
    assert calls == {(*here, ("status", "OK")): 1, (*here, ("status", "NOT_FOUND")): 1}
    assert found["callboard_grpc_request_duration_seconds_count"][here] == 2
    of_model = (("engine", "engine"), ("gateway", "kserve"), ("model_name", str(long_path)))
    assert found["callboard_grpc_generation_tokens_total"][of_model] == 3
    assert found["callboard_grpc_time_to_first_token_seconds_count"][of_model] == 1
    assert (
        found["callboard_grpc_request_success_total"][(*of_model[:1], ("finished_reason", "length"), *of_model[1:])]
        == 1
    )
