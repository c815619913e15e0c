"""`agent.upstream`: a model behind HTTP that answers `Generate` as an engine does."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator

import anyio

from ....runtime.actor import Actor, handler
from ....runtime.errors import CallboardError
from ....runtime.log import log
from ....schemas.abilities import GetAbilities, ModelAbilities
from ....schemas.serve import Completion, Generate, Timings, Token, Usage
from ....schemas.upstream import GetUpstreamStats, UpstreamStats
from ..token_estimate import estimate_tokens, prompt_tokens
from . import anthropic_api, openai_api
from .answers import ToolNames, finished_choice
from .anthropic_api import AnthropicAnswer
from .config import Api, UpstreamConfig
from .connection import Connection
from .errors import UpstreamAuth, UpstreamBusy, UpstreamCutOff, UpstreamError, UpstreamLimited
from .openai_api import OpenAiAnswer
from .rate import Pace
from .requests import CONSTRAINTS, check, tool_names
from .retry import wait_before_retry

# For requests that do not bound their answer, what of the tokens per minute is kept for one until it is known.
ASSUMED_ANSWER_TOKENS = 512
LAST_READ_S = 0.2

Answer = OpenAiAnswer | AnthropicAnswer


class Upstream(Actor[UpstreamConfig]):
    """Answers `Generate` from an endpoint. Failures that may pass are tried again as long as nothing of an answer was
    handed on; after that they are the answer. A caller that goes away closes the connection.

    Start raises ConfigError, MissingExtra. Requests raise UpstreamError, RequestInvalid.
    """

    async def started(self) -> None:
        config = self.config
        self._connection = Connection(config)
        self._pace = Pace(config.requests_per_minute, config.tokens_per_minute)
        self._slots = anyio.Semaphore(config.concurrency)
        self._running = self._waiting = 0
        self._requests = self._retries = self._unmetered = 0
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0
        self._cost = 0.0
        self._failures: Counter[str] = Counter()

    async def stopped(self) -> None:
        connection = getattr(self, "_connection", None)
        if connection is not None:
            await connection.close()

    @handler(concurrent=True)
    async def generate(self, message: Generate) -> AsyncIterator[Token | Completion]:
        self._requests += 1
        try:
            check(message, self.config)
            if self.config.api is Api.ANTHROPIC:
                anthropic_api.check_sampling(message, self.config)
            names = tool_names(message)
            body = self._body(message, names)
            async with self._slot():
                async with contextlib.aclosing(self._answer(message, body, names)) as items:
                    async for item in items:
                        yield item
        except CallboardError as error:
            self._failures[error.code] += 1
            raise

    @handler
    async def stats(self, message: GetUpstreamStats) -> UpstreamStats:
        return UpstreamStats(
            model=self.config.model,
            requests=self._requests,
            running=self._running,
            waiting=self._waiting,
            retries=self._retries,
            failures=tuple(sorted(self._failures.items())),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            unmetered=self._unmetered,
            cost=self._cost,
        )

    @handler(concurrent=True)
    async def abilities(self, message: GetAbilities) -> ModelAbilities:
        return ModelAbilities(grammars=tuple(sorted(CONSTRAINTS[self.config.api])), tools=True)

    def _body(self, request: Generate, names: ToolNames) -> dict[str, object]:
        config = self.config
        api = anthropic_api if config.api is Api.ANTHROPIC else openai_api
        body = api.request_body(request, config, names) | config.extra
        return {name: value for name, value in body.items() if name not in config.omit}

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of the requests that may be under way, after waiting for it."""
        if self._running >= self.config.concurrency and self._waiting >= self.config.max_waiting:
            raise UpstreamBusy(f"{self._running} requests are under way and {self._waiting} wait")
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            self._slots.release()

    async def _answer(
        self, request: Generate, body: dict[str, object], names: ToolNames
    ) -> AsyncGenerator[Token | Completion]:
        attempt = 0
        key_was_read = False
        while True:
            handed_on = False
            try:
                async with contextlib.aclosing(self._attempt(request, body, names)) as items:
                    async for item in items:
                        handed_on = True
                        yield item
                return
            except UpstreamError as error:
                if isinstance(error, UpstreamAuth) and not key_was_read:
                    key_was_read = True
                    if self._connection.key_changed():
                        continue
                wait = None if handed_on else wait_before_retry(self.config, error, attempt)
                if wait is None:
                    raise
                log.warning("%s: %s; asking again in %.1f s", self.address, error, wait)
                if isinstance(error, UpstreamLimited) and error.retry_after is not None:
                    self._pace.pause(wait)  # for the others too
            self._retries += 1
            attempt += 1
            await anyio.sleep(wait)

    async def _attempt(
        self, request: Generate, body: dict[str, object], names: ToolNames
    ) -> AsyncGenerator[Token | Completion]:
        num_prompt = prompt_tokens(request)
        reserved = await self._pace.take(num_prompt + (request.max_tokens or ASSUMED_ANSWER_TOKENS) * request.n)
        answer = (AnthropicAnswer if self.config.api is Api.ANTHROPIC else OpenAiAnswer)(request.n, names)
        began, first = time.perf_counter(), 0.0
        async with self._connection.events(body) as events:
            async for event in events:
                for token in answer.feed(event):
                    first = first or time.perf_counter()
                    yield token
                if answer.done:
                    # Nothing should follow; a connection that was read to its end may serve again.
                    with anyio.move_on_after(LAST_READ_S):
                        await anext(events, None)
                    break
        if not answer.complete:
            raise UpstreamCutOff("the endpoint's stream ended before the answer did")
        completion = self._completion(answer, num_prompt, began, first or time.perf_counter())
        self._pace.settle(reserved, completion.usage.prompt_tokens + completion.usage.completion_tokens)
        yield completion

    def _completion(self, answer: Answer, num_prompt: int, began: float, first: float) -> Completion:
        choices = tuple(finished_choice(parts, answer.names) for parts in answer.choices)
        counts = answer.counts
        if counts.prompt is None or counts.completion is None:
            self._unmetered += 1
        prompt = num_prompt if counts.prompt is None else counts.prompt
        completion = counts.completion
        if completion is None:
            texts = [choice.text + "".join(call.arguments for call in choice.tool_calls) for choice in choices]
            completion = sum(map(estimate_tokens, texts))
        cost = self.config.cost(prompt, counts.cached, completion)
        self._prompt_tokens += prompt
        self._cached_tokens += counts.cached
        self._completion_tokens += completion
        self._cost += cost
        seconds = time.perf_counter() - first
        rate = (completion - 1) / seconds if completion > 1 and seconds > 0 else 1 / max(first - began, 1e-9)
        return Completion(
            choices[0].text,
            choices[0].finish_reason,
            Usage(prompt, completion, counts.cached),
            Timings((first - began) * 1e3, rate),
            choices,
            tool_calls=choices[0].tool_calls,
            cost=cost,
        )
