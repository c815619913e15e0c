"""What is said to a scripted model (`agent.scripted`) beside `Generate`: more of the script, and how it went."""

from __future__ import annotations

import enum

import msgspec

from .base import Message, Request
from .serve import Generate, ModelToolCall


class Match(enum.StrEnum):
    """How an answer says which calls it is for. `PREDICATE`: `pattern` names a function of the request."""

    ANY = "any"
    EXACT = "exact"
    CONTAINS = "contains"
    REGEX = "regex"
    PREDICATE = "predicate"


class Part(enum.StrEnum):
    """What of a prompt a pattern is held against: the last message, or all of them, each as `role: content`.

    A raw prompt is both.
    """

    LAST = "last"
    ALL = "all"


class ScriptedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One answer of a script, and the calls that it is for: those that `match` and whose `session` is this one's
    ("": any).

    `text` is cut as a server cuts it, before a string of `stop` and at `max_tokens`. `pieces`: the same text as it is
    streamed (else by the configuration). `error`: fail with that code and `text` as message. `times`: how often it
    answers; 0: as often as it is asked, which is never left unused.

    It is begun when the event `after` was released and `seconds` are over, which stand for a model's time to compute;
    with `hold`, the rest after the first piece waits for that event.
    """

    text: str = ""
    match: Match = Match.ANY
    pattern: str = ""
    part: Part = Part.LAST
    session: str = ""
    pieces: tuple[str, ...] = ()
    tool_calls: tuple[ModelToolCall, ...] = ()
    error: str = ""
    times: int = 1
    after: str = ""
    hold: str = ""
    seconds: float = 0.0


class CallOutcome(enum.StrEnum):
    WAITING = "waiting"
    ANSWERED = "answered"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNEXPECTED = "unexpected"


class ScriptedCall(msgspec.Struct, frozen=True):
    """A call that came. `answer`: the place of its answer in the script, -1 for none."""

    request: Generate
    answer: int
    outcome: CallOutcome


class ScriptedCalls(Message, frozen=True, tag="scripted.calls.result"):
    """The last calls, oldest first, and how many there were in all."""

    calls: tuple[ScriptedCall, ...]
    total: int


class GetScriptedCalls(Request[ScriptedCalls], frozen=True, tag="scripted.calls"):
    """Ask what was asked of the model so far."""


class ScriptState(Message, frozen=True, kw_only=True, tag="scripted.state"):
    """How a script goes. `unused`: places of answers that are left; `waiting`: calls under way."""

    calls: int
    unexpected: int
    waiting: int
    unused: tuple[int, ...]
    prompt_tokens: int
    completion_tokens: int


class ExtendScript(Request[ScriptState], frozen=True, tag="scripted.extend"):
    """Add answers at the end of the script."""

    answers: tuple[ScriptedAnswer, ...]


class ReleaseScript(Request[ScriptState], frozen=True, tag="scripted.release"):
    """Let an event have happened: answers that wait for it go on, and later ones do not wait."""

    event: str


class AwaitCalls(Request[ScriptState], frozen=True, tag="scripted.await"):
    """Answered once so many calls have come in all."""

    calls: int


class FinishScript(Request[ScriptState], frozen=True, tag="scripted.finish"):
    """Say that the play is over. Fails where a call was unexpected (`scripted.unexpected`) or an answer is left
    (`scripted.unused`)."""
