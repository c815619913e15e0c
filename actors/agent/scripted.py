"""A model that answers from a script, for tests and benchmarks: exact, and strict about what it is asked.

It keeps what a server keeps: pieces of a stream, stop strings, `max_tokens`, usage, cancellation. Tokens are estimated
(`token_estimate.py`), so figures of two scripted runs may be compared with each other only.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, ClassVar

import anyio
import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import CallboardError, RequestInvalid, from_info
from ...schemas.abilities import GetAbilities, ModelAbilities
from ...schemas.base import ErrorInfo
from ...schemas.scripted import (
    AwaitCalls,
    CallOutcome,
    ExtendScript,
    FinishScript,
    GetScriptedCalls,
    ReleaseScript,
    ScriptedAnswer,
    ScriptedCall,
    ScriptedCalls,
    ScriptState,
)
from ...schemas.serve import Choice, Completion, FinishReason, Generate, GrammarKind, Timings, Token, Usage
from .script import Predicate, Script, UnexpectedCall, named_predicate
from .token_estimate import cut_to_tokens, estimate_tokens, prompt_tokens

# A thousand pieces a second leave in small groups: a sleep for each would take longer than it should.
_SHORTEST_SLEEP_S = 0.005


class ScriptedConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`answers`: the script. `ordered`: calls must come in its order; else each takes the first answer that is for it.
    `each_session`: every `Generate.session` plays the whole script by itself.

    `piece_characters`: how answers without pieces of their own are streamed; 0: in one piece. `pieces_per_s`: how
    fast; 0: as they are taken. `model`: the one name that requests may give ("": any). `keep_calls`: of how many calls
    the requests are kept.
    """

    answers: tuple[ScriptedAnswer, ...] = ()
    ordered: bool = True
    each_session: bool = False
    piece_characters: Annotated[int, msgspec.Meta(ge=0)] = 0
    pieces_per_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    model: str = ""
    keep_calls: Annotated[int, msgspec.Meta(ge=0)] = 10_000


@dataclass
class _Call:
    request: Generate
    answer: int = -1
    outcome: CallOutcome = CallOutcome.WAITING


class Scripted(Actor[ScriptedConfig]):
    """Answers `Generate`. Fails with UnexpectedCall for a call that the script has no answer for.

    A class derived from it may name `predicates` for answers to match by.
    """

    predicates: ClassVar[Mapping[str, Predicate]] = {}

    async def started(self) -> None:
        config = self.config
        self._script = Script(
            config.answers,
            ordered=config.ordered,
            each_session=config.each_session,
            find=named_predicate(self.predicates, self.node.allow),
        )
        self._calls: deque[_Call] = deque(maxlen=config.keep_calls)
        self._total = self._waiting = 0
        self._prompt_tokens = self._completion_tokens = 0
        self._events: dict[str, anyio.Event] = {}
        self._news = anyio.Event()

    @handler(concurrent=True)
    async def abilities(self, message: GetAbilities) -> ModelAbilities:
        return ModelAbilities(grammars=tuple(GrammarKind), tools=True)

    @handler(concurrent=True)
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        call = _Call(message)
        self._calls.append(call)
        self._total += 1
        self._tell()
        self._waiting += 1
        try:
            self._check(message)
            call.answer = self._script.take(message)
            async with aclosing(self._play(self._script.answers[call.answer], message)) as items:
                async for item in items:
                    if isinstance(item, Completion):
                        # Before it is sent: whoever has an answer may ask at once how the call went.
                        call.outcome = CallOutcome.ANSWERED
                    yield item
        except UnexpectedCall:
            call.outcome = CallOutcome.UNEXPECTED
            raise
        except CallboardError:
            call.outcome = CallOutcome.FAILED
            raise
        finally:
            self._waiting -= 1
            if call.outcome is CallOutcome.WAITING:
                call.outcome = CallOutcome.CANCELLED

    async def _play(self, answer: ScriptedAnswer, request: Generate) -> AsyncGenerator[Token | Completion]:
        began = time.perf_counter()
        if answer.after:
            await self._event(answer.after).wait()
        if answer.seconds:
            await anyio.sleep(answer.seconds)
        if answer.error:
            raise from_info(ErrorInfo(answer.error, answer.text or f"the script says {answer.error}"))
        text, reason = _cut(answer.text or "".join(answer.pieces), request)
        self._prompt_tokens += (num_prompt := prompt_tokens(request))
        first = 0.0
        left = len(text)
        for number, piece in enumerate(self._pieces(answer, text)):
            if self.config.pieces_per_s:
                ahead = began + number / self.config.pieces_per_s - time.perf_counter()
                if ahead > _SHORTEST_SLEEP_S:
                    await anyio.sleep(ahead)
            if not (piece := piece[:left]):
                break
            left -= len(piece)
            yield Token(piece, ())
            if not first:
                first = time.perf_counter() - began
                if answer.hold:
                    await self._event(answer.hold).wait()
        num_tokens = estimate_tokens(text) + sum(estimate_tokens(call.arguments) for call in answer.tool_calls)
        self._completion_tokens += num_tokens
        seconds = time.perf_counter() - began
        yield Completion(
            text,
            reason,
            Usage(num_prompt, num_tokens),
            Timings((first or seconds) * 1e3, num_tokens / seconds if seconds else 0.0),
            (Choice(text, (), reason, tool_calls=answer.tool_calls),),
            tool_calls=answer.tool_calls,
        )

    def _pieces(self, answer: ScriptedAnswer, text: str) -> tuple[str, ...]:
        if answer.pieces:
            return answer.pieces
        size = self.config.piece_characters or len(text) or 1
        return tuple(text[start : start + size] for start in range(0, len(text), size))

    def _check(self, request: Generate) -> None:
        if request.n != 1 or (request.best_of or 1) != 1:
            raise RequestInvalid("a script has one answer to a call")
        if self.config.model and request.model not in ("", self.config.model):
            raise RequestInvalid(f"this is the model '{self.config.model}', not '{request.model}'")

    @handler
    async def calls(self, message: GetScriptedCalls) -> ScriptedCalls:
        calls = tuple(ScriptedCall(call.request, call.answer, call.outcome) for call in self._calls)
        return ScriptedCalls(calls, self._total)

    @handler
    async def extend(self, message: ExtendScript) -> ScriptState:
        self._script.extend(message.answers)
        return self._state()

    @handler
    async def release(self, message: ReleaseScript) -> ScriptState:
        self._event(message.event).set()
        return self._state()

    @handler(concurrent=True)
    async def await_calls(self, message: AwaitCalls) -> ScriptState:
        while self._total < message.calls:
            await self._news.wait()
        return self._state()

    @handler
    async def finished(self, message: FinishScript) -> ScriptState:
        self._script.check_finished()
        return self._state()

    def _event(self, name: str) -> anyio.Event:
        return self._events.setdefault(name, anyio.Event())

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()

    def _state(self) -> ScriptState:
        return ScriptState(
            calls=self._total,
            unexpected=self._script.unexpected,
            waiting=self._waiting,
            unused=self._script.unused(),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
        )


def _cut(text: str, request: Generate) -> tuple[str, FinishReason]:
    """As a server ends an answer: before the first stop string, and at `max_tokens`."""
    stops = [place for stop in request.stop if (place := text.find(stop)) >= 0]
    whole = text[: min(stops)] if stops else text
    if request.max_tokens is not None and estimate_tokens(whole) > request.max_tokens:
        return cut_to_tokens(whole, request.max_tokens), FinishReason.LENGTH
    return whole, FinishReason.STOP
