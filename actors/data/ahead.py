"""Tokenizing in processes beside the one that uses the tokens, ahead of it, in the order of the records."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from pathlib import Path

from ..models.tokenizer import Tokenizer
from ..models.tokenizer_loading import load_tokenizer
from .batches import TokenBatch, batched_records, tokenize_batch
from .data_file import DataFile
from .errors import DataFailed
from .formats import BY_NAME
from .formats.plain import PIECES
from .json_stream import Record
from .options import DataOptions
from .rendering import Renderer

# A process takes longer to start than to tokenize this much.
BYTES_WORTH_A_PROCESS = 4 << 20
MAX_WORKERS = 16
# Batches that are done or under way for each process; the rest of the file is not read yet.
BATCHES_AHEAD = 3


def num_workers_for(path: Path) -> int:
    """How many processes a file is worth on this machine; 0: it is tokenized in this one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(path.stat().st_size // BYTES_WORTH_A_PROCESS, cores, MAX_WORKERS)


def tokenize_ahead(
    file: DataFile,
    model: Path,
    options: DataOptions,
    workers: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Generator[TokenBatch]:
    """The file's records as tokens, a batch at a time. `model`: the path that its tokenizer is loaded from, if it is
    not loaded already (`tokenizer`).

    Memory: a bounded number of batches, whatever the file's size. Closing the iterator ends the processes. Raises
    DataFailed if one of them dies.
    """
    workers = num_workers_for(file.path) if workers is None else workers
    renderer = Renderer(tokenizer or load_tokenizer(model), options.template)
    if file.format is not PIECES:
        _ = renderer.template  # what is wrong with it should not be left for a worker to find
    if workers <= 0:
        for batch in batched_records(file.records()):
            yield tokenize_batch(batch, file.format, renderer, options)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (model, options, file.format.name)
    )
    running: deque[Future[TokenBatch]] = deque()
    batches = batched_records(file.records())
    try:
        for batch in batches:
            running.append(pool.submit(_tokenize, batch))
            if len(running) >= workers * BATCHES_AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise DataFailed(
            f"a process that tokenizes {file.path} died", hint="was it out of memory? then use fewer processes"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """What a worker process has for its whole life."""

    current: _Worker

    def __init__(self, model: Path, options: DataOptions, format: str) -> None:
        self.renderer = Renderer(load_tokenizer(model), options.template)
        self.options = options
        self.format = BY_NAME[format]


def _start(model: Path, options: DataOptions, format: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _Worker.current = _Worker(model, options, format)


def _end_with_parent() -> None:
    """A parent that was killed closes nothing."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this runs in a worker only"
    wait([parent.sentinel])
    os._exit(1)


def _tokenize(records: list[Record]) -> TokenBatch:
    worker = _Worker.current
    return tokenize_batch(records, worker.format, worker.renderer, worker.options)
