"""What a gateway counts of the answers that go through it, one meter for each model of each engine.

Names and buckets are those of vLLM, whose dashboards read them
(https://docs.vllm.ai/en/stable/usage/metrics/). This is on the way of every token that is streamed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from ...runtime.errors import CallboardError
from ...schemas.serve import Completion, Generate
from .histogram import ANSWERS, BETWEEN_TOKENS_S, TO_FIRST_TOKEN_S, TOKENS, WHOLE_S, Histogram
from .visit import Visit


class ModelMeter:
    """Of one model on one engine."""

    def __init__(self) -> None:
        self.to_first_token = Histogram(TO_FIRST_TOKEN_S)
        self.between_tokens = Histogram(BETWEEN_TOKENS_S)
        self.per_output_token = Histogram(BETWEEN_TOKENS_S)
        self.whole = Histogram(WHOLE_S)
        self.queue = Histogram(WHOLE_S)
        self.prefill = Histogram(WHOLE_S)
        self.inference = Histogram(WHOLE_S)
        self.decode = Histogram(WHOLE_S)
        self.prompt_tokens = Histogram(TOKENS)
        self.generation_tokens = Histogram(TOKENS)
        self.max_tokens = Histogram(TOKENS)
        self.answers = Histogram(ANSWERS)
        # `stop` and `length` as the model ended it, `abort` where the client went away, `error`.
        self.ended: Counter[str] = Counter({"stop": 0, "length": 0, "abort": 0, "error": 0})


class Answering:
    """One request for text under way, from here on. Its end is one of `ended` and `failed`; what comes after is not
    heard."""

    __slots__ = ("_began", "_first", "_last", "_meter", "_open", "_request", "_seen", "_visit")

    def __init__(self, meter: ModelMeter, request: Generate, visit: Visit) -> None:
        self._meter = meter
        self._request = request
        self._visit = visit
        self._began = time.perf_counter()
        self._first = 0.0
        self._last: dict[int, float] = {}
        self._seen = 0
        self._open = True

    def grew(self, index: int, num_tokens: int) -> None:
        """A piece of one of the answers has come."""
        now = time.perf_counter()
        self._seen += num_tokens
        last = self._last.get(index)
        if last is not None:
            if num_tokens:
                self._meter.between_tokens.add((now - last) / num_tokens, num_tokens)
        elif not self._first:
            self._first = now
            self._meter.to_first_token.add(now - self._began)
        self._last[index] = now

    def ended(self, completion: Completion) -> None:
        if not self._open:
            return
        self._open = False
        meter, usage = self._meter, completion.usage
        whole = time.perf_counter() - self._began
        generated = usage.completion_tokens
        if self._first:
            to_first = self._first - self._began
        else:  # it came as one: the engine says how it went
            to_first = completion.timings.ttft_ms / 1e3
            meter.to_first_token.add(to_first)
            streams = max(1, len(completion.choices))
            if generated > streams and completion.timings.tokens_per_s > 0:
                meter.between_tokens.add(streams / completion.timings.tokens_per_s, generated - streams)
        if generated > 1:
            meter.per_output_token.add(max(0.0, whole - to_first) / (generated - 1))
        queued = completion.timings.queue_ms / 1e3
        meter.queue.add(queued)
        meter.prefill.add(max(0.0, completion.timings.ttft_ms / 1e3 - queued))
        meter.inference.add(max(0.0, whole - queued))
        meter.whole.add(whole)
        meter.decode.add(max(0.0, whole - to_first))
        meter.prompt_tokens.add(usage.prompt_tokens)
        meter.generation_tokens.add(generated)
        meter.answers.add(self._request.n)
        if self._request.max_tokens is not None:
            meter.max_tokens.add(self._request.max_tokens)
        meter.ended[completion.finish_reason.value] += 1
        self._visit.spend(usage.prompt_tokens + generated)

    def failed(self, error: BaseException | None) -> None:
        """Given up by whoever asked (None, or a cancellation), or an error of the engine's."""
        if not self._open:
            return
        self._open = False
        if isinstance(error, CallboardError):
            self._meter.ended["error"] += 1
        elif error is None or isinstance(error, asyncio.CancelledError):
            self._meter.ended["abort"] += 1
        if self._seen:
            self._visit.spend(self._seen + _length(self._request))


def _length(request: Generate) -> int:
    """Tokens of a prompt whose completion never came to say: exact for ids, else by four characters to a token."""
    if request.prompt_ids:
        return len(request.prompt_ids)
    return (len(request.prompt) + sum(len(message.content) for message in request.messages)) // 4
