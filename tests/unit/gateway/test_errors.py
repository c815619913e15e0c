"""Errors of the company as HTTP knows them, also those whose classes a gateway's process has never seen."""

from __future__ import annotations

import pytest

from callboard.actors.gateway.errors import retry_after, status_of
from callboard.actors.gateway.openai_routes import error_body
from callboard.runtime.errors import CallboardError, NoStore, RemoteError
from callboard.schemas.base import ErrorInfo


def remote(code: str, hint: str = "") -> CallboardError:
    return RemoteError(ErrorInfo(code, "words", hint))


@pytest.mark.parametrize(
    ("error", "status", "seconds"),
    [
        (remote("serve.overloaded", "there is room in about 7 s"), 429, 7),
        (remote("serve.replica_lost"), 503, 1),
        (remote("train.none"), 404, None),
        (remote("train.no_room"), 503, 1),
        (remote("something.else"), 500, None),
        (NoStore("there is none"), 503, 1),
    ],
)
def test_an_error_is_known_by_its_code(error: CallboardError, status: int, seconds: int | None) -> None:
    assert (status_of(error), retry_after(error)) == (status, seconds)
    assert error_body(error)["error"]["code"] == error.to_info().code
