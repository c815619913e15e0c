"""How an engine is doing: its counts, and in detail its replicas, its sequences and its last seconds."""

from __future__ import annotations

import msgspec

from .base import Message, Request
from .serve_steps import ReplicaInfo


class UnderWay(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that runs or waits. `age_s`: since it was taken in; `num_blocks`: that it holds now."""

    sequence_id: int
    running: bool
    prompt_tokens: int
    generated_tokens: int
    max_tokens: int
    cached_tokens: int = 0
    num_blocks: int = 0
    age_s: float = 0.0
    client: str = ""
    priority: int = 0
    adapter: str = ""


class ServedSecond(msgspec.Struct, frozen=True):
    """One second of an engine's recent past. `ttft_ms` and `token_ms` (the time between two tokens of one answer) are
    means over what came in it, 0 where nothing did."""

    tokens: int = 0
    first_tokens: int = 0
    ttft_ms: float = 0.0
    token_ms: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0


class LaneStats(msgspec.Struct, frozen=True, kw_only=True):
    """A replica and what is there for it. `info` is None while it is away.

    `cells`: the cache as a map, a byte for each `blocks_per_cell` blocks in a row, the highest of them: 0 for a block
    that is blank, 1 for one that nobody holds and that keeps what may be asked for again, n + 1 for one held by n
    sequences (254 at most). `under_way`: those that run, then those that wait in their order, at most `MAX_UNDER_WAY`.
    """

    address: str
    info: ReplicaInfo | None = None
    running: int = 0
    waiting: int = 0
    num_blocks: int = 0
    free_blocks: int = 0
    blocks_per_cell: int = 1
    cells: bytes = b""
    under_way: tuple[UnderWay, ...] = ()


# A map of more cells, or a list of more sequences, is more than anybody looks at.
MAX_CELLS = 4096
MAX_UNDER_WAY = 256


class EngineDetail(msgspec.Struct, frozen=True):
    """What `GetStats` tells beyond counts, where it is asked to. `seconds`: the last ones, the oldest first; the one
    that is going on is not among them."""

    lanes: tuple[LaneStats, ...]
    seconds: tuple[ServedSecond, ...] = ()


class EngineStats(Message, frozen=True, kw_only=True, tag="serve.stats"):
    """The engine at one moment, and its counts since it started."""

    model: str
    dtype: str
    running: int
    waiting: int
    num_blocks: int
    free_blocks: int
    """Blocks that nobody holds, those that keep what may be asked for again included."""
    block_size: int
    context_length: int
    requests: int
    finished: int
    aborted: int
    failed: int
    preemptions: int
    replica_failures: int
    prompt_tokens: int
    generated_tokens: int
    steps: int
    step_seconds: float
    """From sending steps to having their results."""
    compute_seconds: float
    """The replica's own part of that."""
    cached_blocks: int = 0
    """Those of `free_blocks` that keep what may be asked for again."""
    pinned_blocks: int = 0
    sessions: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were found computed."""
    evictions: int = 0
    refused: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    plan_seconds: float = 0.0
    """The scheduler's own time: planning steps and taking their results."""
    busy_seconds: float = 0.0
    """Time during which there was something to compute."""
    replicas: tuple[ReplicaInfo, ...] = ()
    adapters: tuple[str, ...] = ()
    detail: EngineDetail | None = None


class GetStats(Request[EngineStats], frozen=True, tag="serve.get_stats"):
    """Ask a scheduler or an engine how it is doing. `detail`: also of each replica, each sequence and each second."""

    detail: bool = False
