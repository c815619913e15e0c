"""The chat page: its files at `/` and `/static`, and what it asks for beside OpenAI's API at `/web`.

The page is plain HTML, CSS and JavaScript that lies beside this module. It loads nothing from elsewhere, and the policy
that is sent with it lets it load nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from ...runtime.errors import ActorStopped, CallboardError, NoSuchActor, NotUnderstood
from ...schemas.agent import AnswerApproval, ListApprovals
from ...schemas.agent_parts import Scope, Verdict
from ...schemas.base import Request
from ...schemas.question import AnswerQuestion, ListQuestions, Outcome
from ...schemas.train import DrawTraining, ListTraining
from .bodies import decode_body, read_body
from .endpoints import answer
from .errors import BadBody, NoSuchRoute
from .openai_routes import error_answer, error_body
from .site import Site
from .web_guard import check_origin
from .web_types import ApprovalAnswer, QuestionAnswer

FOLDER = Path(__file__).parent / "web"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# No inline script or style, nothing from elsewhere, no frame around it; and no text is ever taken for markup.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE_HEADERS = {
    "content-security-policy": PAGE_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # asked for again each time, and answered with 304 where nothing changed
}
# An image on its own is no place for scripts either.
IMAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}

# The company's actors for these, where they run.
TRAIN, AGENTS, QUESTIONS = "train", "agents", "questions"
ASK_TIMEOUT_S = 10.0
# Who answered, where the page's user gave no name.
SOMEBODY = "web"
_STATUS = {
    "train.none": 404,
    "agent.none": 404,
    "agent.no_approval": 404,
    "agent.over": 409,
    "agent.approval_answered": 409,
    "agent.approval_expired": 409,
    "question.none": 404,
    "question.over": 409,
    "question.answer": 422,
}

R = TypeVar("R")
Work = Callable[[Site, HttpRequest], Awaitable[Response]]


def guarded(work: Work, site: Site) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def run(request: HttpRequest) -> Response:
        try:
            check_origin(request.headers, site.config)
            return await work(site, request)
        except CallboardError as error:
            status = _STATUS.get(error.code)
            if status is None:
                return error_answer(error)
            body = error_body(error)
            body["error"]["type"] = "invalid_request_error"
            return answer(body, status)

    return run


async def ask(site: Site, address: str, message: Request[R]) -> R | None:
    """None where the company has no such actor, or one of an earlier version."""
    try:
        return await site.node.actor(address).ask(message, timeout=ASK_TIMEOUT_S)
    except (NoSuchActor, ActorStopped, NotUnderstood):
        return None


async def jobs(site: Site, request: HttpRequest) -> Response:
    """`available`: whether anybody trains here."""
    found = await ask(site, TRAIN, ListTraining())
    shown = [] if found is None else [_plain(job) for job in reversed(found.jobs)]
    return answer({"available": found is not None, "jobs": shown})


async def curves(site: Site, request: HttpRequest) -> Response:
    """`?job=A&job=B&smoothing=0.8&log=1`: an SVG image, or 204 where no step was taken yet."""
    names = tuple(request.query_params.getlist("job"))
    if not names:
        raise BadBody("job: name at least one", param="job")
    message = DrawTraining(names, _smoothing(request), request.query_params.get("log", "0") == "1")
    drawn = await ask(site, TRAIN, message)
    if drawn is None:
        raise NoSuchRoute("nobody trains here, or draws what was trained")
    if not drawn.svg:
        return Response(status_code=204, headers=IMAGE_HEADERS)
    return Response(drawn.svg, headers=IMAGE_HEADERS, media_type="image/svg+xml")


def _smoothing(request: HttpRequest) -> float:
    text = request.query_params.get("smoothing", "0.8")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise BadBody(f"smoothing: expected a number from 0 to below 1, got '{text}'", param="smoothing")
    return value


async def waiting(site: Site, request: HttpRequest) -> Response:
    """All that waits for a person: approvals of agents, and questions on the board."""
    approvals = await ask(site, AGENTS, ListApprovals())
    questions = await ask(site, QUESTIONS, ListQuestions())
    return answer(
        {
            "available": approvals is not None or questions is not None,
            "approvals": [] if approvals is None else [_plain(one) for one in approvals.approvals],
            "questions": [] if questions is None else [_plain(one) for one in questions.questions if not one.approval],
        }
    )


async def answer_approval(site: Site, request: HttpRequest) -> Response:
    body = decode_body(await _json(site, request), ApprovalAnswer)
    message = AnswerApproval(
        id=request.path_params["id"],
        verdict=Verdict(body.verdict),
        arguments=body.arguments,
        text=body.text,
        by=body.by or SOMEBODY,
        scope=Scope(body.scope),
        stop=body.stop,
    )
    return _told(await ask(site, AGENTS, message), AGENTS)


async def answer_question(site: Site, request: HttpRequest) -> Response:
    body = decode_body(await _json(site, request), QuestionAnswer)
    value = "" if body.value is msgspec.UNSET else msgspec.json.encode(body.value).decode()
    message = AnswerQuestion(request.path_params["id"], Outcome(body.outcome), value, body.note, body.by or SOMEBODY)
    return _told(await ask(site, QUESTIONS, message), QUESTIONS)


async def _json(site: Site, request: HttpRequest) -> bytes:
    """A form of another site can send no such type without asking first. Raises BadBody."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise BadBody("the body must be JSON, and its content-type say so")
    return await read_body(request, site.max_body_bytes)


def _told(done: Any, address: str) -> Response:
    if done is None:
        raise NoSuchRoute(f"the actor `{address}` is not there any more")
    return answer(_plain(done))


def _plain(message: Any) -> dict[str, Any]:
    value = msgspec.to_builtins(message)
    value.pop("type", None)
    return value


# Files


@cache
def assets() -> dict[str, tuple[bytes, str]]:
    """The content of each file and its tag, by name."""
    found = {path.name: path.read_bytes() for path in sorted(FOLDER.iterdir()) if path.suffix in TYPES}
    return {name: (data, f'"{hashlib.sha256(data).hexdigest()[:32]}"') for name, data in found.items()}


def _asset(request: HttpRequest, name: str) -> Response:
    if name not in assets():
        return error_answer(NoSuchRoute(f"there is no {request.url.path} here"))
    data, tag = assets()[name]
    headers = {**PAGE_HEADERS, "etag": tag}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=TYPES[Path(name).suffix])


async def page(request: HttpRequest) -> Response:
    return _asset(request, "index.html")


async def static(request: HttpRequest) -> Response:
    return _asset(request, request.path_params["name"])


async def icon(request: HttpRequest) -> Response:
    return _asset(request, "icon.svg")


def web_routes(site: Site) -> list[Route]:
    return [
        Route("/", page, methods=["GET"]),
        Route("/favicon.ico", icon, methods=["GET"]),
        Route("/static/{name}", static, methods=["GET"]),
        Route("/web/jobs", guarded(jobs, site), methods=["GET"]),
        Route("/web/curves", guarded(curves, site), methods=["GET"]),
        Route("/web/waiting", guarded(waiting, site), methods=["GET"]),
        Route("/web/approvals/{id}", guarded(answer_approval, site), methods=["POST"]),
        Route("/web/questions/{id}", guarded(answer_question, site), methods=["POST"]),
    ]
