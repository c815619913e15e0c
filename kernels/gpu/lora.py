"""Low-rank products of a served batch: each row with the adapter that it names, all adapters in two launches.

`shrink` takes x to the rank, `expand` takes that to the outputs and adds it. A program has a tile of rows; it goes over
the adapters that occur among them, one after the other, and reads each adapter's matrix once: rows of one sequence lie
together, so a prompt's tile mostly has one adapter, and a tile of decoding rows reads no more than each row's own.
Where rows are few the input is divided among programs, whose sums `expand` adds up in order: no atomics, so a run
repeats.
"""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportArgumentType=false
# (What a kernel's body computes with is typed when Triton compiles it, and launches take options of Triton's own.)

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..lora import Rows
from .launch import check
from .tiles import FLOATS, num_splits, power_of_two, split_size

ROWS = 16  # the least that a tensor core multiplies
BLOCK_IN = {2: 128, 4: 64}  # by the size of a value
BLOCK_OUT = 128
# Bytes of a and x that a program of `shrink` has on their way at once: what every card since 8.0 can hold twice.
SHARED_BYTES = 48 << 10
STAGES = 3
MIN_RANK = 16
MAX_RANK = 256
NO_ADAPTER = tl.constexpr(0x7FFFFFFF)
# What the list of a launch names: nothing, for all rows have one adapter; the rows that have it; each row's adapter.
ONE_ADAPTER = tl.constexpr(0)
ONE_ADAPTER_SOME_ROWS = tl.constexpr(1)
ADAPTERS = tl.constexpr(2)


@triton.jit
def _rows_and_adapters(list_ptr, num_rows, KIND: tl.constexpr, ROWS: tl.constexpr):
    """This program's rows of x and y, their places in the list, and their adapters (NO_ADAPTER: none)."""
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = place < num_rows
    row = place.to(tl.int64)
    if KIND == ONE_ADAPTER_SOME_ROWS:
        row = tl.load(list_ptr + place, mask=here, other=0)
    if KIND == ADAPTERS:
        adapter = tl.load(list_ptr + place, mask=here, other=-1).to(tl.int32)
        adapter = tl.where(adapter >= 0, adapter, NO_ADAPTER)
    else:
        adapter = tl.where(here, 0, NO_ADAPTER)
    return row, place.to(tl.int64), adapter


@triton.jit
def _shrink(
    x_ptr, a_ptr, list_ptr, low_ptr, num_rows, num_in, rank, x_stride, a_stride, a_row_stride,
    split_size, KIND: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """low float32 [num_splits, num_rows, RANK]: each row of x times its adapter's a, over one piece of the inputs."""
    row, place, adapter = _rows_and_adapters(list_ptr, num_rows, KIND, ROWS)
    split = tl.program_id(1)
    begin = split * split_size
    end = tl.minimum(begin + split_size, num_in)
    r = tl.arange(0, RANK)
    low = tl.zeros([ROWS, RANK], tl.float32)
    current = tl.min(adapter, 0)
    while current < NO_ADAPTER:
        a = a_ptr + current.to(tl.int64) * a_stride
        is_its = adapter == current
        for first in range(begin, end, BLOCK):
            i = first + tl.arange(0, BLOCK)
            x = tl.load(
                x_ptr + row[:, None] * x_stride + i[None, :], mask=is_its[:, None] & (i < end)[None, :], other=0.0
            )
            part = tl.load(
                a + r[None, :] * a_row_stride + i[:, None], mask=(r < rank)[None, :] & (i < end)[:, None], other=0.0
            )
            low = _add_product(low, x, part, EXACT)  # rows of other adapters are zero in x
        current = tl.min(tl.where(adapter > current, adapter, NO_ADAPTER), 0)
    target = low_ptr + (split.to(tl.int64) * num_rows + place[:, None]) * RANK + r[None, :]
    tl.store(target, low, mask=(place < num_rows)[:, None])


@triton.jit
def _add_product(total, x, y, EXACT: tl.constexpr):
    if EXACT:  # three tensor-core products of halves of each number: nearly float32's own precision
        return tl.dot(x, y, total, input_precision="tf32x3")
    else:
        return tl.dot(x, y, total, input_precision="tf32")


@triton.jit
def _expand(
    y_ptr, b_ptr, list_ptr, low_ptr, num_rows, num_out, rank, y_stride, b_stride, b_row_stride, num_splits,
    KIND: tl.constexpr, EXACT: tl.constexpr, ROWS: tl.constexpr, RANK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """y += low times each row's own b, for one tile of the outputs."""
    row, place, adapter = _rows_and_adapters(list_ptr, num_rows, KIND, ROWS)
    r = tl.arange(0, RANK)
    low = tl.zeros([ROWS, RANK], tl.float32)
    for split in range(num_splits):
        source = low_ptr + (split * num_rows + place[:, None]) * RANK + r[None, :]
        low += tl.load(source, mask=(place < num_rows)[:, None], other=0.0)
    out = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    added = tl.zeros([ROWS, BLOCK], tl.float32)
    current = tl.min(adapter, 0)
    while current < NO_ADAPTER:
        b = b_ptr + current.to(tl.int64) * b_stride
        part = tl.load(
            b + out[None, :] * b_row_stride + r[:, None], mask=(r < rank)[:, None] & (out < num_out)[None, :], other=0.0
        )
        its = tl.where((adapter == current)[:, None], low, 0.0)
        # In tf32 the low side keeps ten bits, and what b has of its type is exact.
        added = _add_product(added, its, part.to(tl.float32), EXACT)
        current = tl.min(tl.where(adapter > current, adapter, NO_ADAPTER), 0)
    mask = (adapter < NO_ADAPTER)[:, None] & (out < num_out)[None, :]
    target = y_ptr + row[:, None] * y_stride + out[None, :]
    tl.store(
        target, (tl.load(target, mask=mask, other=0.0).to(tl.float32) + added).to(y_ptr.dtype.element_ty), mask=mask
    )


def lora(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, rows: Rows) -> None:
    """See `ops.lora`. Ranks of up to 256."""
    check("a", a, dtypes=(x.dtype,), ndim=2, like=y)
    check("b", b, dtypes=(x.dtype,), ndim=2, like=y)
    _check(y, x, a[None], b[None])
    if isinstance(rows, slice):
        y, x = y[rows], x[rows]
        _launch(y, x, a[None], b[None], None, ONE_ADAPTER.value)
    else:
        check("rows", rows, dtypes=(torch.int64,), ndim=1, like=y)
        _launch(y, x, a[None], b[None], rows, ONE_ADAPTER_SOME_ROWS.value)


def lora_multi(
    y: torch.Tensor, x: torch.Tensor, a_stack: torch.Tensor, b_stack: torch.Tensor, adapter_of_row: torch.Tensor
) -> None:
    """See `ops.lora_multi`. Ranks of up to 256."""
    check("a_stack", a_stack, dtypes=(x.dtype,), ndim=3, like=y)
    check("b_stack", b_stack, dtypes=(x.dtype,), ndim=3, like=y)
    check("adapter_of_row", adapter_of_row, dtypes=(torch.int64, torch.int32), ndim=1, like=y)
    _check(y, x, a_stack, b_stack)
    if len(adapter_of_row) != len(y):
        raise ValueError(f"adapter_of_row has {len(adapter_of_row)} values for {len(y)} rows")
    if len(a_stack):
        _launch(y, x, a_stack, b_stack, adapter_of_row, ADAPTERS.value)


def _check(y: torch.Tensor, x: torch.Tensor, a_stack: torch.Tensor, b_stack: torch.Tensor) -> None:
    check("y", y, dtypes=FLOATS, ndim=2, like=y)
    check("x", x, dtypes=FLOATS, ndim=2, like=y)
    if len(y) != len(x):
        raise ValueError(f"y has {len(y)} rows, x {len(x)}")
    num_adapters, rank, num_in = a_stack.shape
    if num_in != x.shape[1]:
        raise ValueError(f"a takes {num_in} inputs, x has {x.shape[1]}")
    if b_stack.shape != (num_adapters, y.shape[1], rank):
        raise ValueError(
            f"b has the shape {tuple(b_stack.shape)}; with a of {tuple(a_stack.shape)} and y of {tuple(y.shape)} it "
            f"is {(num_adapters, y.shape[1], rank)}"
        )
    if rank > MAX_RANK:
        raise ValueError(f"a has rank {rank}; this kernel takes at most {MAX_RANK}")


def _launch(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, index: torch.Tensor | None, kind: int
) -> None:
    num_rows = len(x) if index is None else len(index)
    rank, num_in, num_out = a.shape[1], x.shape[1], y.shape[1]
    if not num_rows or not rank or not num_out or not num_in:
        return
    width = max(MIN_RANK, power_of_two(rank))
    block_in = min(
        BLOCK_IN[x.element_size()], _power_of_two_below(SHARED_BYTES // (STAGES * (width + ROWS) * x.element_size()))
    )
    block_out = max(32, min(BLOCK_OUT, 4096 // width))  # a wide rank leaves fewer registers
    num_tiles = triton.cdiv(num_rows, ROWS)
    splits = num_splits(num_tiles, num_in, 4 * block_in, x.device)
    size = split_size(num_in, splits, block_in)
    splits = triton.cdiv(num_in, size)
    low = torch.empty(splits, num_rows, width, dtype=torch.float32, device=x.device)
    listed = x if index is None else index  # a pointer that is not read
    flags = {"KIND": kind, "EXACT": x.dtype == torch.float32, "ROWS": ROWS, "RANK": width}
    _shrink[(num_tiles, splits)](
        x, a, listed, low, num_rows, num_in, rank, x.stride(0), a.stride(0), a.stride(1), size,
        **flags, BLOCK=block_in, num_warps=4, num_stages=STAGES,
    )  # fmt: skip
    _expand[(num_tiles, triton.cdiv(num_out, block_out))](
        y, b, listed, low, num_rows, num_out, rank, y.stride(0), b.stride(0), b.stride(1), splits,
        **flags, BLOCK=block_out, num_warps=4, num_stages=1,
    )  # fmt: skip


def _power_of_two_below(n: int) -> int:
    """The largest one up to `n`, and no less than a tensor core multiplies."""
    return max(16, 1 << n.bit_length() - 1)
