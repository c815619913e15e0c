"""What the OpenAPI document says is tried by schemathesis, on a gateway that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import httpx2
import jsonschema
import pytest
from gateways import gateway, idle, start_engine

from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.node import Node

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,use_after_free"
)
# A model that nobody serves is not ready, and to say so is no fault.
READY_SAYS_503 = """
[[operations]]
include-path = "/ready"
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""


async def test_the_document_is_served(node: Node) -> None:
    async with gateway(node) as url, httpx2.AsyncClient() as http:
        answer = await http.get(f"{url}/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["openapi"] == "3.1.0"
        wrong = await http.put(f"{url}/v1/responses")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


async def test_answers_are_as_the_document_says(node: Node, long_path: Path) -> None:
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": ["hello"]}
    named = [{"name": "text_output", "parameters": {"binary_data": True}}]
    chat = {"text_input": "hello", "chat": True, "max_tokens": 3, "id": "1"}
    say = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3, "session_id": "s"}
    model = "/v2/models/{model}"
    async with gateway(node, models={"small": "engine.scheduler"}) as url:
        async with httpx2.AsyncClient(base_url=url, timeout=30) as http:
            document = (await http.get("/openapi.json")).json()
            of = {"components": document["components"]}

            async def conforms(method: str, path: str, body: Any = None, status: int = 200) -> None:
                """A field that the document does not know is one that nobody wrote down."""
                filled = path.replace("{model}", "small").replace("{version}", "1").replace("{session_id}", "s")
                answer = await http.request(method, filled.replace("{name}", "main.js"), json=body)
                assert answer.status_code == status, (path, answer.text)
                described = document["paths"][path][method.lower()]["responses"][str(status)]["content"]
                media = answer.headers["content-type"].partition(";")[0]
                schema = described[media]["schema"]
                if media == "application/json":
                    jsonschema.Draft202012Validator(schema | of).validate(answer.json())
                    known = schema.get("$ref", "").rpartition("/")[2]
                    if known and isinstance(answer.json(), dict):
                        assert answer.json().keys() <= of["components"]["schemas"][known]["properties"].keys()

            for path in ("/health", "/ready", "/v2/health/ready"):
                await conforms("GET", path, status=503)
            await start_engine(node, long_path)
            with anyio.fail_after(10):
                while (await http.get("/ready")).status_code != 200:
                    pass  # what it knows may be half a second old
            for path in ("/health", "/ready", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready"):
                await conforms("GET", path)
            for base in (model, f"{model}/versions/{{version}}"):
                for path in (base, f"{base}/ready", f"{base}/config"):
                    await conforms("GET", path)
                await conforms("POST", f"{base}/infer", {"id": "1", "inputs": [text]})
                await conforms("POST", f"{base}/infer", {"inputs": [text], "outputs": named})
                await conforms("POST", f"{base}/generate", chat)
                await conforms("POST", f"{base}/generate_stream", chat)
            await conforms("POST", "/v2/repository/index")
            for path in ("/", "/favicon.ico", "/static/{name}", "/web/jobs", "/web/waiting"):
                await conforms("GET", path)
            await conforms("POST", "/v1/chat/completions", say)
            await conforms("GET", "/v1/sessions")
            await conforms("POST", "/v1/sessions/{session_id}", {"ttl_s": 50})
            await conforms("DELETE", "/v1/sessions/{session_id}")
            for path, described in document["paths"].items():  # of the gateway as it is
                assert all(one["responses"]["200"]["content"] for one in described.values()), path
    await idle(node)


def schemathesis() -> Path:
    """In an environment of its own, made once."""
    folder = ROOT / ".venv-peers" / "schemathesis"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        requirements = ROOT / "tests" / "benchmarks" / "peers" / "requirements-schemathesis.txt"
        install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", requirements]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"schemathesis cannot be installed: {done.stderr[-300:]}")
        (folder / ".installed").touch()
    return folder / "bin" / "schemathesis"


@pytest.mark.foreign
@pytest.mark.timeout(1200)
async def test_no_request_is_the_servers_fault_and_answers_are_as_the_document_says(
    node: Node, long_path: Path, tmp_path: Path
) -> None:
    program = await anyio.to_thread.run_sync(schemathesis)
    await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs"), "nothing.trains"), name="train")
    await start_engine(node, long_path, default_max_tokens=4)
    (tmp_path / "schemathesis.toml").write_text(READY_SAYS_503)
    async with gateway(node) as url:
        command = [
            *(str(program), "run", f"{url}/openapi.json", "--checks", CHECKS, "--max-examples", "15"),
            *("--seed", "1", "--no-shrink", "--continue-on-failure", "--request-timeout", "30", "--warnings", "off"),
            *("--phases", "examples,coverage,fuzzing", "--suppress-health-check", "filter_too_much"),
        ]
        done = await anyio.run_process(command, check=False, cwd=tmp_path, stderr=subprocess.STDOUT)
        said = done.stdout.decode()
        assert done.returncode == 0, said[-12000:]
        assert "No issues found" in said
    await idle(node)
