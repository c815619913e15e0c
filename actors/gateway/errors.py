"""Errors of the company as HTTP knows them: a status, and how long to wait before asking again."""

from __future__ import annotations

import math
import re

from ...runtime.errors import (
    ActorStopped,
    CallboardError,
    DeadlineExceeded,
    Forbidden,
    MailboxFull,
    NoSuchActor,
    NoSuchModel,
    NotReachable,
    RequestInvalid,
    StoreError,
    TooLarge,
    UsageError,
)

_SECONDS = re.compile(r"about (\d+) s")
# Where nothing is known of how long it takes.
RETRY_AFTER_S = 1


class GatewayError(CallboardError):
    """What is wrong with a request before it is one of the company's."""

    code = "gateway"
    status = 400

    def __init__(self, message: str, *, param: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = param


class BadBody(GatewayError):
    """`param` is the path of the field that is wrong."""

    code = "gateway.body"


class BodyTooLarge(GatewayError):
    code = "gateway.too_large"
    status = 413


class NoSuchRoute(GatewayError):
    code = "gateway.route"
    status = 404


class ModelUnknown(GatewayError):
    code = "gateway.model"
    status = 404


class StillLoading(GatewayError):
    code = "gateway.loading"
    status = 503


class NotAllowed(GatewayError):
    """`status` 401 for nobody that is known, 403 for somebody who may not."""

    code = "gateway.key"

    def __init__(self, message: str, status: int = 401, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


class TooMany(GatewayError):
    """Connections at once."""

    code = "gateway.full"
    status = 503


class NotRead(GatewayError):
    """A client that does not take its answer."""

    code = "gateway.not_read"
    status = 504


class TooSlow(GatewayError):
    """The request itself did not come in time."""

    code = "gateway.slow"
    status = 408


class LimitReached(GatewayError):
    """Of a key's rate. `retry_after_s`: when there is room again."""

    code = "gateway.limit"
    status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


_STATUS: tuple[tuple[type[CallboardError], int], ...] = (
    (RequestInvalid, 400),
    (UsageError, 400),
    (TooLarge, 413),
    (Forbidden, 403),
    (NoSuchModel, 404),
    (MailboxFull, 503),
    (NoSuchActor, 503),
    (ActorStopped, 503),
    (NotReachable, 503),
    (DeadlineExceeded, 504),
    (StoreError, 503),
)
# Of those that a gateway meets by messages alone: where they run in other processes, classes of errors are not known.
_STATUS_OF_CODES = {
    "serve.overloaded": 429,
    "serve.replica_lost": 503,
    "serve.grammar": 400,
    "serve.nothing_to_draw": 400,
    "train.none": 404,
    "train.state": 400,
    "train.no_room": 503,
}


def status_of(error: CallboardError) -> int:
    if isinstance(error, GatewayError):
        return error.status
    if (status := _STATUS_OF_CODES.get(error.to_info().code)) is not None:
        return status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def retry_after(error: CallboardError) -> int | None:
    """Seconds after which it is worth to ask again, for those errors that pass."""
    if isinstance(error, LimitReached):
        return max(RETRY_AFTER_S, math.ceil(error.retry_after_s))
    if status_of(error) not in (429, 503):
        return None
    seconds = _SECONDS.search(error.hint)
    return int(seconds[1]) if seconds else RETRY_AFTER_S


def words(error: CallboardError) -> str:
    """The message, with what to do about it."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
