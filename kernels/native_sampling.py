"""Drawing tokens natively: `ops.greedy`, `ops.sample` and `ops.token_logprobs` for float32 rows on a CPU."""

from __future__ import annotations

import threading

import torch

from . import native
from .weights import NativeEngine

# Of more likeliest tokens than this a selection by insertion is slower than torch's.
MAX_TOP = 64


class _Local(threading.local):
    """Each thread that draws has threads of its own to do so, as many as torch would use: an engine takes one call at
    a time."""

    engine: NativeEngine | None = None


_local = _Local()


def takes(logits: torch.Tensor) -> bool:
    """Whether these rows [num_rows, vocab] are drawn here."""
    return logits.dtype == torch.float32 and logits.device.type == "cpu" and logits.numel() > 0 and available()


def available() -> bool:
    return not native.unavailable()


def greedy(logits: torch.Tensor) -> torch.Tensor:
    rows = logits.contiguous()
    tokens = torch.empty(len(rows), dtype=torch.int64)
    native.kernels().cb_greedy(rows.data_ptr(), *rows.shape, tokens.data_ptr())
    return tokens


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    rows = logits.contiguous()
    columns = (
        temperature.double().contiguous(),
        top_k.long().contiguous(),
        *(column.double().contiguous() for column in (top_p, min_p, uniform)),
    )
    if any(column.shape != rows.shape[:1] for column in columns):
        raise ValueError(f"{len(rows)} rows need as many of each parameter")
    tokens = torch.empty(len(rows), dtype=torch.int64)
    pointers = (column.data_ptr() for column in columns)
    native.kernels().cb_sample(_handle(), rows.data_ptr(), *rows.shape, *pointers, tokens.data_ptr())
    return tokens


def token_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, num_top: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, tokens = logits.contiguous(), tokens.long().contiguous()
    num_rows, vocab_size = rows.shape
    if tokens.shape != (num_rows,) or not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        raise ValueError(f"{num_rows} rows need a token each, from 0 to {vocab_size - 1}")
    num_top = min(num_top, vocab_size)
    own, top = torch.empty(num_rows), torch.empty(num_rows, num_top)
    ids = torch.empty(num_rows, num_top, dtype=torch.int64)
    native.kernels().cb_token_logprobs(
        _handle(),
        rows.data_ptr(),
        num_rows,
        vocab_size,
        tokens.data_ptr(),
        num_top,
        own.data_ptr(),
        ids.data_ptr(),
        top.data_ptr(),
    )
    return own, ids, top


def _handle() -> int:
    if _local.engine is None:
        _local.engine = NativeEngine(torch.get_num_threads())
    return _local.engine.handle
