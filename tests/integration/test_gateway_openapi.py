"""What the OpenAPI document says is tried by schemathesis, on a gateway that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import anyio.to_thread
import httpx2
import pytest
from gateways import gateway, idle, start_engine

from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.node import Node

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,use_after_free"
)


async def test_the_document_is_served(node: Node) -> None:
    async with gateway(node) as url, httpx2.AsyncClient() as http:
        answer = await http.get(f"{url}/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["openapi"] == "3.1.0"
        wrong = await http.put(f"{url}/v1/responses")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")


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
