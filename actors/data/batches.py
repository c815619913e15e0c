"""Records to tokens, a batch at a time: what one worker process does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RequestInvalid
from .data_file import Problem, read_record
from .errors import NoSpans
from .formats.format import Format
from .json_stream import Record
from .lengths import Counts, fit
from .options import DataOptions
from .rendering import Rendered, RenderedPair, Renderer

# A batch of records is full with so many of them, or so many bytes.
BATCH_RECORDS = 256
BATCH_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """What a batch of records became. `token_ids` int32 and `loss_mask` bool [num_tokens] hold the sequences one behind
    the other; `lengths` int64 [num_sequences]. `num_records` of each problem's kind are in `counts`."""

    token_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    lengths: NDArray[np.int64]
    counts: Counts
    problems: list[Problem] = field(default_factory=list)


def batched_records(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.json)
        if len(batch) == BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def render_record(record: Record, format: Format, renderer: Renderer) -> Rendered | RenderedPair | Problem:
    sample = read_record(record, format)
    if isinstance(sample, Problem):
        return sample
    try:
        return renderer.render(sample)
    except (NoSpans, RequestInvalid) as error:
        return Problem(record.line, str(error))


def tokenize_batch(records: Sequence[Record], format: Format, renderer: Renderer, options: DataOptions) -> TokenBatch:
    """With `skip_bad` false it ends at the first record that cannot be used: nothing after it is wanted."""
    counts = Counts()
    problems: list[Problem] = []
    sequences: list[Rendered] = []
    for record in records:
        counts.num_records += 1
        rendered = render_record(record, format, renderer)
        if isinstance(rendered, Problem):
            counts.num_bad += 1
            problems.append(rendered)
            if not options.skip_bad:
                break
            continue
        fitting = fit(rendered, options.max_tokens, options.too_long, counts)
        counts.num_samples += 1 if isinstance(rendered, RenderedPair) and fitting else len(fitting)
        sequences += fitting
    counts.num_tokens = sum(one.num_tokens for one in sequences)
    counts.num_loss_tokens = sum(one.num_loss_tokens for one in sequences)
    return TokenBatch(
        np.concatenate([np.empty(0, np.int32), *(one.token_ids for one in sequences)]),
        np.concatenate([np.empty(0, np.bool_), *(one.loss_mask for one in sequences)]),
        np.array([one.num_tokens for one in sequences], np.int64),
        counts,
        problems,
    )
