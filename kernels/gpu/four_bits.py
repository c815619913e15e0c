"""Products with four-bit weights: the kernels of `linear_int4` and `linear_nf4`, over the words of `planar`.

Few rows are bound by memory: no matrix instructions, 16 bytes of codes to a thread, and one sum for each word, so that
tiles of codes, scales and inputs are in the same registers and nothing is exchanged before the end. More rows go in
tiles through `tl.dot`, the weight as the left operand, which may stay in registers after it was made. Where tiles are
too few for the card, the words of a row are dealt out to several programs, whose sums `split` adds in one order. With
so many rows that the weight is made anew for each of many tiles, it is written out once, some outputs at a time, and
multiplied by the library.
"""
# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false
# Kernels are what Triton makes of them: their arguments, launches and loops are not those of plain functions.

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ..planar import PlanarInt4, PlanarNf4
from . import split
from .product_tiles import Tiles, tiles_of_words

# Rows beyond which a weight is written out: eight tiles would each have made it.
MAX_TILED = 512
# Values of a weight that are written out at a time: 64 MiB in 16 bits.
DENSE_VALUES = 1 << 25
DENSE_OUTPUTS, DENSE_WORDS = 16, 64
# A load whose addresses do not follow each other along any dimension (of scales, of looked-up values) is laid out along
# the last one; by Triton 3.6 along the first. Words go along that one, so that such loads need no exchange either.
WORDS_LAST = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 7)
FORMAT_INT4 = 0
FORMAT_NF4 = 1


def multiply(
    x: torch.Tensor, weight: PlanarInt4 | PlanarNf4, bias: torch.Tensor | None, tiles: Tiles | None = None
) -> torch.Tensor:
    """x [num_tokens, num_in], checked -> [num_tokens, num_out]."""
    num_tokens, (num_out, num_in) = len(x), weight.shape
    out = torch.empty(num_tokens, num_out, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    if tiles is None and num_tokens > MAX_TILED:
        step = max(1, DENSE_VALUES // num_in)
        for first in range(0, num_out, step):
            last = min(num_out, first + step)
            part = None if bias is None else bias[first:last].to(x.dtype)
            out[:, first:last] = F.linear(x, dense(weight, x.dtype, first, last), part)
        return out
    if tiles is None:
        tiles = tiles_of_words(num_tokens, num_out, weight.words.shape[1], split.num_processors(x.device))
    sums = split.buffer(out, tiles.num_splits)
    kernel = _few_rows if tiles.few else _many_rows
    # A pipeline would copy each looked-up value of NF4 to shared memory by itself.
    # Those of int4 lie in shared memory, which may be no more than 99 KiB.
    num_stages = 1 if tiles.few or isinstance(weight, PlanarNf4) else 4 if tiles.tokens * x.element_size() <= 64 else 3
    grid = (triton.cdiv(num_tokens, tiles.tokens), triton.cdiv(num_out, tiles.outputs), tiles.num_splits)
    pointers, constants = _arguments(weight)
    kernel[grid](
        x,
        *pointers,
        bias if tiles.num_splits == 1 else None,
        sums,
        num_tokens,
        num_out,
        num_in,
        weight.words.shape[1],
        pointers[1].shape[1],
        x.stride(0),
        **constants,
        TOKENS=tiles.tokens,
        OUTPUTS=tiles.outputs,
        WORDS=tiles.words,
        SPLITS=tiles.num_splits,
        LAST=WORDS_LAST,
        num_warps=tiles.num_warps,
        num_stages=num_stages,
    )
    return split.add(sums, bias, out)


def dense(weight: PlanarInt4 | PlanarNf4, dtype: torch.dtype, first: int, last: int) -> torch.Tensor:
    """The rows `first` to `last` - 1 as [last - first, num_in] of that type; columns as they are kept."""
    num_in, num_words = weight.shape[1], weight.words.shape[1]
    out = torch.empty(last - first, num_in, dtype=dtype, device=weight.words.device)
    pointers, constants = _arguments(weight)
    grid = (triton.cdiv(last - first, DENSE_OUTPUTS), triton.cdiv(num_words, DENSE_WORDS))
    _dense[grid](
        *pointers,
        out,
        first,
        last,
        num_in,
        num_words,
        pointers[1].shape[1],
        **constants,
        OUTPUTS=DENSE_OUTPUTS,
        WORDS=DENSE_WORDS,
        num_warps=4,
    )
    return out


def _arguments(weight: PlanarInt4 | PlanarNf4) -> tuple[tuple[Any, ...], dict[str, int]]:
    """words, scales, offsets, nested, table, values, offset, and the constants of a weight."""
    if isinstance(weight, PlanarInt4):
        constants = {"FORMAT": FORMAT_INT4, "KIND": int(weight.kind), "GROUP_WORDS": weight.group_words}
        pointers = (weight.words, weight.scales, weight.offsets, None, None, None, None)
    else:
        is_nested = int(weight.nested_absmax is not None)
        constants = {"FORMAT": FORMAT_NF4, "KIND": is_nested, "GROUP_WORDS": weight.chunk}
        inner = (weight.nested_absmax, weight.dynamic_map, weight.values, weight.offset)
        pointers = (weight.words, weight.absmax, None, *inner)
    return pointers, constants | {"CHUNK": weight.chunk}


@triton.jit
def _scale_and_minimum(
    scales, offsets, nested, table, offset, n, w, inside, num_groups, FORMAT: tl.constexpr, KIND: tl.constexpr,
    GROUP_WORDS: tl.constexpr,
):  # fmt: skip
    """Of each word: what its codes' values are multiplied with, and what is then added (for INT4)."""
    if GROUP_WORDS == 0:
        group = w * 0
    else:
        group = w // GROUP_WORDS
    inside = inside & (group < num_groups)
    place = n.to(tl.int64) * num_groups + group
    scale = tl.load(scales + place, mask=inside, other=0)
    minimum = 0.0
    if FORMAT == 0:
        scale = scale.to(tl.float32)
        if KIND == 0:
            minimum = scale * -8.0
        elif KIND == 1:
            minimum = -tl.load(offsets + place, mask=inside, other=0).to(tl.float32) * scale
        else:
            minimum = tl.load(offsets + place, mask=inside, other=0).to(tl.float32)
    elif KIND == 1:
        # Blocks outside have no scale; what stands here for them meets words of zeros that no input belongs to.
        outer = tl.load(nested + place // 256, mask=inside, other=0)
        scale = tl.load(table + scale.to(tl.int32)) * outer + tl.load(offset)
    else:
        scale = scale.to(tl.float32)
    return scale, minimum


@triton.jit
def _scaled_code(word, PLACE: tl.constexpr):
    """16^PLACE times the code in the bits 4 PLACE to 4 PLACE + 3, float32, PLACE at most 3.

    The bits lie within the mantissa of 2^23: no shift and no conversion, of which a processor does fewer at a time.
    """
    bits = (word & (0x0F << 4 * PLACE)) | 0x4B000000
    return bits.to(tl.float32, bitcast=True) - 8388608.0


@triton.jit
def _words(x, LAST: tl.constexpr):
    """A vector along the dimension of words of three."""
    return x[None, None, :] if LAST else x[:, None, None]


@triton.jit
def _tokens(x, LAST: tl.constexpr):
    """A vector along the dimension of tokens of three."""
    return x[:, None, None] if LAST else x[None, None, :]


@triton.jit
def _column(x, LAST: tl.constexpr):
    """A vector across the words of a matrix."""
    return x[:, None] if LAST else x[None, :]


@triton.jit
def _row(x, LAST: tl.constexpr):
    """A vector along the words of a matrix."""
    return x[None, :] if LAST else x[:, None]


@triton.jit
def _few_rows(
    x, words, scales, offsets, nested, table, values, offset, bias, out, num_tokens, num_out, num_in, num_words,
    num_groups, stride_x, FORMAT: tl.constexpr, KIND: tl.constexpr, CHUNK: tl.constexpr, GROUP_WORDS: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr, SPLITS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """out [SPLITS, num_tokens, num_out]. Tiles are [TOKENS, OUTPUTS, WORDS], or turned round where not LAST.

    Threads divide the words only, four to a thread: so loads of codes and of inputs get the same layout
    and no value moves between threads before the sum at the end.
    """
    m = tl.program_id(0) * TOKENS + _tokens(tl.arange(0, TOKENS), LAST)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)[None, :, None]
    part = tl.program_id(2)
    rows = words + n.to(tl.int64) * num_words
    inputs = x + m.to(tl.int64) * stride_x
    FIRST_SIZE: tl.constexpr = TOKENS if LAST else WORDS
    LAST_SIZE: tl.constexpr = WORDS if LAST else TOKENS
    # Four inputs to a load and not eight, which would be in other registers than the four words.
    SIDE_BY_SIDE: tl.constexpr = 4 if CHUNK > 4 else CHUNK
    sums = tl.zeros([FIRST_SIZE, OUTPUTS, LAST_SIZE], dtype=tl.float32)
    for start in range(part * WORDS, num_words, SPLITS * WORDS):
        w = start + _words(tl.arange(0, WORDS), LAST)
        inside = (n < num_out) & (w < num_words)
        # Codes are read once: they need not displace inputs and scales in the cache.
        word = tl.load(rows + w, mask=inside, other=0, eviction_policy="evict_first")
        scale, minimum = _scale_and_minimum(
            scales, offsets, nested, table, offset, n, w, inside, num_groups, FORMAT, KIND, GROUP_WORDS
        )
        first = w // CHUNK * (8 * CHUNK) + w % CHUNK
        dots = tl.zeros([FIRST_SIZE, OUTPUTS, LAST_SIZE], dtype=tl.float32)
        total = tl.zeros([FIRST_SIZE, 1, LAST_SIZE], dtype=tl.float32)
        upper = word >> 16
        for i in tl.static_range(8):
            column = first + i * CHUNK
            places = tl.max_contiguous(inputs + column, [1 if LAST else SIDE_BY_SIDE, 1, SIDE_BY_SIDE if LAST else 1])
            inp = tl.load(places, mask=(m < num_tokens) & (column < num_in), other=0).to(tl.float32)
            if FORMAT == 0:
                code = _scaled_code(word if i < 4 else upper, i % 4)
                dots += code * (inp * (1.0 / (1 << 4 * (i % 4))))
                total += inp
            else:
                # 16 values lie in one cache line, so a warp's load of any of them is one access.
                dots += tl.load(values + ((word >> 4 * i) & 0x0F)) * inp
        if FORMAT == 0:
            sums += dots * scale + total * minimum
        else:
            sums += dots * scale
    result = tl.sum(sums, axis=2 if LAST else 0)
    m = tl.program_id(0) * TOKENS + _column(tl.arange(0, TOKENS), LAST)
    n = tl.program_id(1) * OUTPUTS + _row(tl.arange(0, OUTPUTS), LAST)
    if bias is not None:
        result += tl.load(bias + n, mask=n < num_out, other=0).to(tl.float32)
    place = (part * num_tokens + m).to(tl.int64) * num_out + n
    tl.store(out + place, result.to(out.dtype.element_ty), mask=(m < num_tokens) & (n < num_out))


@triton.jit
def _many_rows(
    x, words, scales, offsets, nested, table, values, offset, bias, out, num_tokens, num_out, num_in, num_words,
    num_groups, stride_x, FORMAT: tl.constexpr, KIND: tl.constexpr, CHUNK: tl.constexpr, GROUP_WORDS: tl.constexpr,
    TOKENS: tl.constexpr, OUTPUTS: tl.constexpr, WORDS: tl.constexpr, SPLITS: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """out [SPLITS, num_tokens, num_out]; each step is eight products, one for each place of a code in its word."""
    m = tl.program_id(0) * TOKENS + _column(tl.arange(0, TOKENS), LAST)
    n = tl.program_id(1) * OUTPUTS + _column(tl.arange(0, OUTPUTS), LAST)
    part = tl.program_id(2)
    rows = words + n.to(tl.int64) * num_words
    inputs = x + m.to(tl.int64) * stride_x
    sums = tl.zeros([OUTPUTS, TOKENS], dtype=tl.float32)
    # A scale for each word, though many have the same: a column of them would bring the values into its own layout.
    places = _row(tl.arange(0, WORDS), LAST)
    inside = (n < num_out) & (part * WORDS + places < num_words)
    scale, minimum = _scale_and_minimum(
        scales, offsets, nested, table, offset, n, part * WORDS + places, inside, num_groups, FORMAT, KIND, GROUP_WORDS
    )
    for start in range(part * WORDS, num_words, SPLITS * WORDS):
        w = start + places
        word = tl.load(rows + w, mask=(n < num_out) & (w < num_words), other=0)
        # Scales are too small for asynchronous copies: those of the next step are asked for before this one's products.
        coming = start + SPLITS * WORDS + places
        inside = (n < num_out) & (coming < num_words)
        next_scale, next_minimum = _scale_and_minimum(
            scales, offsets, nested, table, offset, n, coming, inside, num_groups, FORMAT, KIND, GROUP_WORDS
        )
        upper = word >> 16
        first = w // CHUNK * (8 * CHUNK) + w % CHUNK
        for i in tl.static_range(8):
            column = first + i * CHUNK
            inp = tl.load(inputs + column, mask=(m < num_tokens) & (column < num_in), other=0)
            if FORMAT == 0:
                code = _scaled_code(word if i < 4 else upper, i % 4)
                value = code * (scale * (1.0 / (1 << 4 * (i % 4)))) + minimum
            else:
                value = tl.load(values + ((word >> 4 * i) & 0x0F)) * scale
            value = value.to(inp.dtype)
            if LAST:
                sums = tl.dot(value, tl.trans(inp), sums, input_precision="ieee")
            else:
                sums = tl.dot(tl.trans(value), inp, sums, input_precision="ieee")
        scale, minimum = next_scale, next_minimum
    m = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[None, :]
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    if bias is not None:
        sums += tl.load(bias + n, mask=n < num_out, other=0).to(tl.float32)
    place = (part * num_tokens + m).to(tl.int64) * num_out + n
    tl.store(out + place, sums.to(out.dtype.element_ty), mask=(m < num_tokens) & (n < num_out))


@triton.jit
def _dense(
    words, scales, offsets, nested, table, values, offset, out, first_out, last_out, num_in, num_words, num_groups,
    FORMAT: tl.constexpr, KIND: tl.constexpr, CHUNK: tl.constexpr, GROUP_WORDS: tl.constexpr, OUTPUTS: tl.constexpr,
    WORDS: tl.constexpr,
):  # fmt: skip
    """out [last_out - first_out, num_in]: the weight's rows from first_out on."""
    row = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)[:, None]
    n = first_out + row
    w = tl.program_id(1) * WORDS + tl.arange(0, WORDS)[None, :]
    inside = (n < last_out) & (w < num_words)
    word = tl.load(words + n.to(tl.int64) * num_words + w, mask=inside, other=0)
    scale, minimum = _scale_and_minimum(
        scales, offsets, nested, table, offset, n, w, inside, num_groups, FORMAT, KIND, GROUP_WORDS
    )
    first = w // CHUNK * (8 * CHUNK) + w % CHUNK
    for i in tl.static_range(8):
        code = (word >> 4 * i) & 0x0F
        if FORMAT == 0:
            value = code.to(tl.float32) * scale + minimum
        else:
            value = tl.load(values + code) * scale
        column = first + i * CHUNK
        place = row.to(tl.int64) * num_in + column
        tl.store(out + place, value.to(out.dtype.element_ty), mask=inside & (column < num_in))
