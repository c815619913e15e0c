"""How products of linear layers are cut into programs."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace

import triton

from . import split
from .tuning import Config

# Rows that kernels without matrix instructions take; beyond, a tile of 16 costs less.
MAX_FEW = 4


@dataclass(frozen=True)
class Tiles:
    """How a product is cut: outputs and words to a program and step, tokens to a program, programs to a row's words."""

    tokens: int
    outputs: int
    words: int
    num_splits: int
    num_warps: int
    few: bool


def tiles_of_words(num_tokens: int, num_out: int, num_words: int, num_processors: int) -> Tiles:
    """Four programs a processor or more where the matrix allows, with steps that fill a thread's loads."""
    if num_tokens <= MAX_FEW:
        tokens = triton.next_power_of_2(num_tokens)
        # A step of 128 words is a load of 16 bytes for each thread of a warp.
        num_warps = 4 if num_words >= 512 else 2 if num_words >= 256 else 1
        words = 128 * num_warps
        # Registers allow a tile of 4 outputs for one token, which then uses an input four times, or of 2 for several.
        outputs = 4 if num_tokens == 1 and num_out >= 16 * num_processors else 2
        wanted = 4 * num_processors * 4 // num_warps
        num_splits = split.count(triton.cdiv(num_out, outputs), triton.cdiv(num_words, words), wanted)
        return Tiles(tokens, outputs, words, num_splits, num_warps, few=True)
    tokens = min(64, max(16, triton.next_power_of_2(num_tokens)))
    outputs = 128 if num_tokens > 32 and num_out >= 128 * num_processors else 64
    num_tiles = triton.cdiv(num_tokens, tokens) * triton.cdiv(num_out, outputs)
    # 128 inputs to a step, in eight products of 16, the least that matrix instructions take.
    words = 16
    num_splits = split.count(num_tiles, triton.cdiv(num_words, words * 4), 2 * num_processors)
    return Tiles(tokens, outputs, words, num_splits, num_warps=8 if outputs == 128 else 4, few=False)


@functools.cache
def choices_of_words(num_tokens: int, num_out: int, num_words: int, num_processors: int) -> tuple[Config, ...]:
    """Ways to cut a product that are worth a try on the card itself, for `tuning.pick`: what `tiles_of_words` says
    first, then the other width of a tile, and twice and half as many programs to a sum."""
    first = tiles_of_words(num_tokens, num_out, num_words, num_processors)
    narrow, wide = (2, 4) if first.few else (64, 128)
    outputs = wide if first.outputs == narrow else narrow
    num_warps = first.num_warps if first.few else 8 if outputs == wide else 4
    most = min(split.MAX_SPLITS, triton.cdiv(num_words, first.words))
    tried = (
        first,
        replace(first, outputs=outputs, num_warps=num_warps),
        replace(first, num_splits=min(most, 2 * first.num_splits)),
        replace(first, num_splits=max(1, first.num_splits // 2)),
    )
    return tuple(dict.fromkeys(_as_config(tiles) for tiles in tried))


def _as_config(tiles: Tiles) -> Config:
    constants = {name: int(value) for name, value in asdict(tiles).items() if name != "num_warps"}
    return Config(constants, tiles.num_warps)


def tiles_of(config: Config) -> Tiles:
    """One of `choices_of_words`, as a product takes it."""
    constants = dict(config.constants)
    few = bool(constants.pop("few"))
    return Tiles(**constants, num_warps=config.num_warps, few=few)


def tiles_of_inputs(num_tokens: int, num_out: int, num_in: int, input_bytes: int, num_processors: int) -> Tiles:
    """As `tiles_of_words`; the words of a tile are inputs here, of so many bytes each."""
    if num_tokens <= MAX_FEW:
        num_warps = 4 if num_in >= 2048 else 2 if num_in >= 1024 else 1
        # 16 bytes to a thread.
        inputs, outputs = 512 * num_warps, 2
        wanted = 4 * num_processors * 4 // num_warps
        num_splits = split.count(triton.cdiv(num_out, outputs), triton.cdiv(num_in, inputs), wanted)
        return Tiles(triton.next_power_of_2(num_tokens), outputs, inputs, num_splits, num_warps, few=True)
    tokens = min(128, max(16, triton.next_power_of_2(num_tokens)))
    outputs = 128 if num_tokens > 32 and num_out >= 128 * num_processors else 64
    # Three steps lie in shared memory at a time, which may be no more than 99 KiB.
    inputs = (128 if tokens <= 64 else 64) // input_bytes
    num_tiles = triton.cdiv(num_tokens, tokens) * triton.cdiv(num_out, outputs)
    num_splits = split.count(num_tiles, triton.cdiv(num_in, inputs * 4), 2 * num_processors)
    num_warps = 8 if tokens * outputs >= 128 * 128 else 4
    return Tiles(tokens, outputs, inputs, num_splits, num_warps, few=False)
