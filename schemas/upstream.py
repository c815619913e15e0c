"""What is said to a model behind HTTP (`agent.upstream`) beside `Generate`."""

from __future__ import annotations

from .base import Message, Request


class UpstreamStats(Message, frozen=True, kw_only=True, tag="upstream.stats.result"):
    """Counts since it started. `failures`: how often requests ended with each error code.

    `unmetered`: answers whose endpoint did not say how many tokens they took; theirs are estimated. `cost` is in US
    dollars by the configured prices.
    """

    model: str
    requests: int
    running: int
    waiting: int
    retries: int
    failures: tuple[tuple[str, int], ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    unmetered: int
    cost: float


class GetUpstreamStats(Request[UpstreamStats], frozen=True, tag="upstream.stats"):
    """Ask an upstream how it is doing."""
