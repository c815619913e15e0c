"""The page's files and what it asks for, as HTTP: training jobs, approvals, questions; and who may ask."""

from __future__ import annotations

import asyncio
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec
import pytest
from agent_play import company, lines, play
from board import Board as CommandLine
from gateways import gateway
from own_server import OwnServer

from callboard.actors.gateway.commands_web import page_url
from callboard.actors.gateway.web_routes import FOLDER, TYPES
from callboard.actors.questions.board import Board
from callboard.actors.train.job_folder import JobFolder, Record
from callboard.actors.train.jobs import Jobs, JobsConfig
from callboard.runtime.node import Node
from callboard.schemas.agent import AttachRun, ListApprovals
from callboard.schemas.agent_parts import RunStatus
from callboard.schemas.question import Answered, AskQuestion, ListQuestions, Outcome
from callboard.schemas.train import JobState, TrainConfig, TrainEvaluated, TrainEvent, TrainProgress

pytestmark = pytest.mark.anyio

SVG = "{http://www.w3.org/2000/svg}"
AGE = json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})


@pytest.fixture
async def url(node: Node) -> AsyncIterator[str]:
    async with gateway(node) as url:
        yield url


@pytest.fixture
async def http(url: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=url) as http:
        yield http


# Files


async def test_the_page_and_its_files_come_with_a_strict_policy(http: httpx2.AsyncClient) -> None:
    page = await http.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    parts = [part.strip().partition(" ") for part in page.headers["content-security-policy"].split(";")]
    policy = {name: value for name, _, value in parts}
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["require-trusted-types-for"] == "'script'"
    assert policy["trusted-types"] == "'none'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    for path in FOLDER.iterdir():
        file = await http.get(f"/static/{path.name}")
        assert file.content == path.read_bytes()
        assert file.headers["content-type"] == TYPES[path.suffix]
        assert file.headers["x-content-type-options"] == "nosniff"
        again = await http.get(f"/static/{path.name}", headers={"if-none-match": file.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert (await http.get("/favicon.ico")).headers["content-type"] == "image/svg+xml"


@pytest.mark.parametrize("path", ["..%2fapp.py", "%2e%2e/app.py", "app.py", "", "web", "index.html%00"])
async def test_no_other_file_is_served(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "gateway.route"


def test_the_page_is_whole_and_loads_nothing_from_elsewhere() -> None:
    page = (FOLDER / "index.html").read_text()
    for reference in re.findall(r'(?:src|href)="([^"#][^"]*)"', page):
        assert reference.startswith("/static/")
        assert (FOLDER / reference.removeprefix("/static/")).is_file()
    assert not re.search(r'<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+="|javascript:', page)
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    for path in FOLDER.glob("*.js"):
        source = path.read_text()
        for module in re.findall(r'\bfrom "([^"]+)"', source):
            assert (FOLDER / module.removeprefix("./")).is_file(), (path.name, module)
        assert set(re.findall(r'byId\("([^"]+)"\)', source)) <= ids, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source)
        assert "https://" not in source.replace("^https?:\\/\\/", "")
    assert "url(" not in (FOLDER / "style.css").read_text()


# Training


def progress(job: str, step: int) -> TrainEvent:
    return TrainProgress(
        job=job, step=step, num_steps=40, loss=3 / step + 0.5, lr=1e-4, grad_norm=1 + 1 / step, tokens=900,
        loss_tokens=400, tokens_per_s=800.0, memory_bytes=3 << 30, eta_s=5.0,
    )  # fmt: skip


def trained(root: Path, job: str, num_steps: int = 40) -> None:
    """A job's folder as a run that is over leaves it."""
    root.mkdir(exist_ok=True)
    folder = JobFolder.create(root / job, TrainConfig(model="tiny", data="none", out=str(root / "out")))
    events: list[TrainEvent] = [progress(job, step) for step in range(1, num_steps + 1)]
    if events:
        events.append(TrainEvaluated(job, num_steps, 0.7, True))
        folder.events.write_bytes(b"".join(msgspec.json.encode(event) + b"\n" for event in events))
    folder.write_record(Record(state=JobState.FINISHED, num_steps=40, started=1.0))


async def test_training_jobs_are_listed_and_their_curves_drawn(
    node: Node, http: httpx2.AsyncClient, tmp_path: Path
) -> None:
    assert (await http.get("/web/jobs")).json() == {"available": False, "jobs": []}
    assert (await http.get("/web/curves?job=a")).status_code == 404
    for name, steps in (("first", 40), ("second", 20), ("none", 0)):
        trained(tmp_path / "jobs", name, steps)
    await node.spawn(Jobs, JobsConfig(str(tmp_path / "jobs")), name="train")

    found = (await http.get("/web/jobs")).json()
    assert found["available"] is True
    assert {job["job"]: (job["state"], job["step"]) for job in found["jobs"]} == {
        "first": ("finished", 40), "second": ("finished", 20), "none": ("finished", 0),
    }  # fmt: skip

    image = await http.get("/web/curves?job=first&smoothing=0.9")
    assert image.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in image.headers["content-security-policy"]
    texts = {text.text for text in ElementTree.fromstring(image.text).iter(f"{SVG}text")}
    assert {"first", "loss (dots: of held-out samples)", "learning rate"} <= texts
    plain = (await http.get("/web/curves?job=first&smoothing=0")).text
    both = (await http.get("/web/curves?job=first&job=second&smoothing=0&log=1")).text
    num_lines = [len(list(ElementTree.fromstring(one).iter(f"{SVG}polyline"))) for one in (image.text, plain, both)]
    assert num_lines[0] > num_lines[1]  # what is smoothed, and what it was
    assert num_lines[2] == 2 * num_lines[1]
    assert ">second<" in both
    assert (await http.get("/web/curves?job=none")).status_code == 204

    for query, status, said in (
        ("job=other", 404, "no job other"),
        ("job=../first", 404, "no job"),
        ("", 400, "name at least one"),
        ("job=first&smoothing=1", 400, "below 1"),
        ("job=first&smoothing=nan", 400, "got 'nan'"),
    ):
        wrong = await http.get(f"/web/curves?{query}")
        assert wrong.status_code == status
        assert said in wrong.json()["error"]["message"]


# What waits for people


async def test_an_agents_call_is_approved_as_it_was_edited(server: OwnServer, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    async with company(server.url, witness) as node, gateway(node) as url, httpx2.AsyncClient(base_url=url) as http:
        run = (await node.actor("agents").ask(play("put", "wipe"))).run
        edited = await first(http, "approvals")
        assert (edited["tool"], edited["arguments"], edited["run"]) == ("put", '{"n":0}', run)
        path = f"/web/approvals/{edited['id']}"
        wrong = await http.post(path, json={"verdict": "approve", "arguments": "{"})
        assert wrong.status_code == 400, wrong.text
        done = await http.post(path, json={"verdict": "approve", "arguments": '{"n": 7}', "by": "ann"})
        assert (done.status_code, done.json()["by"]) == (200, "ann")
        late = await http.post(path, json={"verdict": "deny", "by": "bob"})
        assert (late.status_code, late.json()["error"]["code"]) == (409, "agent.approval_answered")

        wipe = await first(http, "approvals", other_than=edited["id"])
        denied = await http.post(f"/web/approvals/{wipe['id']}", json={"verdict": "deny", "text": "never"})
        assert denied.json()["by"] == "web"
        assert (await node.actor("agents").ask(AttachRun(run), timeout=20)).status is RunStatus.FINISHED
        assert lines(witness) == [f'put {run}/s0_0 {{"n": 7}}']
        assert (await node.actor("agents").ask(ListApprovals())).approvals == ()
        nothing = await http.post("/web/approvals/none", json={"verdict": "deny"})
        assert (nothing.status_code, nothing.json()["error"]["type"]) == (404, "invalid_request_error")


async def test_a_question_on_the_board_is_answered_with_what_fits_it(node: Node, http: httpx2.AsyncClient) -> None:
    assert (await http.get("/web/waiting")).json() == {"available": False, "approvals": [], "questions": []}
    board = await node.spawn(Board, name="questions")
    asking: asyncio.Task[Answered] = asyncio.ensure_future(
        board.ask(AskQuestion("How old?", "me", "elicitation", AGE, ttl=60), timeout=30)
    )
    question = await first(http, "questions")
    assert (question["text"], question["schema"]) == ("How old?", AGE)
    path = f"/web/questions/{question['id']}"
    wrong = await http.post(path, json={"outcome": "accepted", "value": {"age": "old"}})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (422, "question.answer")
    missing = await http.post(path, json={"outcome": "maybe"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "outcome")
    assert (await http.post(path, json={"outcome": "accepted", "value": {"age": 7}})).status_code == 200
    answered = await asking
    assert (answered.outcome, json.loads(answered.value), answered.by) == (Outcome.ACCEPTED, {"age": 7}, "web")
    assert (await board.ask(ListQuestions())).questions == ()


async def first(http: httpx2.AsyncClient, what: str, other_than: str = "") -> Any:
    with anyio.fail_after(10):
        while True:
            found = [one for one in (await http.get("/web/waiting")).json()[what] if one["id"] != other_than]
            if found:
                return found[0]
            await anyio.sleep(0.01)


# Who may ask


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, 200),
        ({"host": "callboard.localhost"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"}, 403),
        ({"origin": "https://pages.example", "sec-fetch-site": "cross-site"}, 200),
        ({"host": "pages.example"}, 200),
    ],
)
async def test_another_site_may_not_ask_for_approvals(node: Node, headers: dict[str, str], status: int) -> None:
    async with gateway(node, cors_origins=("https://pages.example",)) as url, httpx2.AsyncClient(base_url=url) as http:
        answer = await http.get("/web/waiting", headers=headers)
        assert answer.status_code == status
        if status == 403:
            assert answer.json()["error"]["code"] == "gateway.origin"


async def test_a_form_of_another_site_answers_nothing(http: httpx2.AsyncClient) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = await http.post(
            "/web/approvals/any", content=b'{"verdict": "approve"}', headers={"content-type": content_type}
        )
        assert answer.status_code == 400
        assert "content-type" in answer.json()["error"]["message"]


# The command


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    board = CommandLine.at(tmp_path_factory.mktemp("web"))
    board.up()
    yield board
    board.close()


def test_the_command_finds_the_gateway_or_starts_one(daemon: CommandLine) -> None:
    def web(*options: str) -> str:
        done = daemon.run("web", "--no-browser", "--no-engine", "--json", *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["url"]

    url = web()
    assert httpx2.get(url).status_code == 200
    assert web() == url
    at = httpx2.URL(url)
    assert web("--port", str(at.port)) == url
    other = web("--host", "localhost")
    assert httpx2.get(other).status_code == 200
    taken = daemon.run("web", "--no-browser", "--no-engine", "--host", "127.0.0.2", "--port", str(at.port))
    listed = json.loads(daemon.run("actors", "--json").stdout)
    assert sum(info["kind"] == "gateway.http" for info in listed) == 3
    assert taken.stdout == f"http://127.0.0.2:{at.port}/\n"


@pytest.mark.parametrize(
    ("listens", "page"),
    [
        ("http://127.0.0.1:80", "http://127.0.0.1:80/"),
        ("https://0.0.0.0:8000", "https://127.0.0.1:8000/"),
        ("http://[::]:8000", "http://[::1]:8000/"),
    ],
)
def test_the_page_of_a_gateway_that_listens_everywhere_is_on_this_machine(listens: str, page: str) -> None:
    assert page_url(listens) == page
