"""An error in the shape of the API that was asked, where no route of that API is there to say it: before a route is
found, and where one fails."""

from __future__ import annotations

from starlette.responses import Response

from ...runtime.errors import CallboardError
from . import anthropic_routes, openai_routes
from .endpoints import answer
from .errors import retry_after, status_of, words


def refusal(path: str, error: CallboardError, headers: dict[str, str] | None = None) -> Response:
    """Anthropic's shape below /v1/messages, KServe's below /v2, and OpenAI's everywhere else."""
    seconds = retry_after(error)
    sent = {**({} if seconds is None else {"retry-after": str(seconds)}), **(headers or {})}
    return answer(_body(path, error), status_of(error), sent)


def _body(path: str, error: CallboardError) -> object:
    if is_below(path, "/v1/messages"):
        return anthropic_routes.error_body(error)
    if is_below(path, "/v2"):
        return {"error": words(error)}
    return openai_routes.error_body(error)


def is_below(path: str, start: str) -> bool:
    return path == start or path.startswith(f"{start}/")
