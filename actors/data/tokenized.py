"""A tokenized file on disk, mapped into memory, and the cache of those.

A folder of the cache is named by all that its content depends on: the file's bytes, the tokenizer with its template,
the options. It is written beside its place and renamed there, so what is there is whole; who comes second finds it.

    tokens.bin   the ids of all sequences one behind the other, uint16 or int32
    loss.bin     uint8, 1 where a token carries loss
    starts.bin   int64 [num_sequences + 1], where each sequence begins in the two
    about.json   `About`, with the first problems
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ...runtime.folders import Paths
from ..models.http_files import file_sha256
from ..models.tokenizer import Tokenizer
from ..models.tokenizer_loading import load_tokenizer
from .ahead import tokenize_ahead
from .batches import TokenBatch
from .data_file import DataFile, Problem, bad_record, open_data
from .errors import DataFailed
from .lengths import Counts
from .options import DataOptions

# Raise it when the same records and options become other tokens.
VERSION = 1
# So many problems are written down one by one; all are counted.
MAX_PROBLEMS = 1000

_MAKING, _LOCK = ".making-", ".lock"
_TOKENS, _LOSS, _STARTS, _ABOUT = "tokens.bin", "loss.bin", "starts.bin", "about.json"


class Sequence(NamedTuple):
    """`token_ids` uint16 or int32, `loss_mask` uint8, both [num_tokens]: views of the mapped file."""

    token_ids: NDArray[np.integer]
    loss_mask: NDArray[np.uint8]


class Pair(NamedTuple):
    chosen: Sequence
    rejected: Sequence


class About(msgspec.Struct, frozen=True):
    """`is_pairs`: a sample is two sequences, the chosen one and the rejected one."""

    source: str
    format: str
    token_type: str
    num_sequences: int
    is_pairs: bool
    counts: Counts
    problems: tuple[Problem, ...]


class TokenizedFile:
    """The samples of one file, in its order: `len`, and `[index]` a Sequence, or a Pair where they are preferences."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = msgspec.json.decode((folder / _ABOUT).read_bytes(), type=About)
        self._tokens = _mapped(folder / _TOKENS, self.about.token_type)
        self._loss = _mapped(folder / _LOSS, "uint8")
        self._starts = _mapped(folder / _STARTS, "int64")

    def __len__(self) -> int:
        return self.about.num_sequences // (2 if self.about.is_pairs else 1)

    def __getitem__(self, index: int) -> Sequence | Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self.about.is_pairs:
            return Pair(self.sequence(2 * index), self.sequence(2 * index + 1))
        return self.sequence(index)

    def sequence(self, index: int) -> Sequence:
        start, end = int(self._starts[index]), int(self._starts[index + 1])
        return Sequence(self._tokens[start:end], self._loss[start:end])

    def lengths(self) -> NDArray[np.int64]:
        """int64 [num_sequences], in tokens."""
        return np.diff(self._starts)


def tokenized(
    path: Path,
    model: Path,
    options: DataOptions,
    *,
    workers: int | None = None,
    progress: Callable[[Counts], None] = lambda counts: None,
    cache: Path | None = None,
) -> TokenizedFile:
    """The file as tokens of the model at `model`, from the cache or made now.

    `progress` is called with what was counted so far. Raises NoSuchData, UnknownFormat, DataFailed; BadRecord for the
    first record that cannot be used, unless the options skip these.
    """
    root = (cache or Paths.find().cache) / "tokens"
    file, tokenizer = open_data(path), load_tokenizer(model)
    folder = root / _key(path, tokenizer, options)
    if (folder / _ABOUT).is_file():
        found = TokenizedFile(folder)
        progress(found.about.counts)
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _making(root) as making:
            with closing(tokenize_ahead(file, model, options, workers, tokenizer)) as batches:
                token_type = "uint16" if tokenizer.vocab_size <= 1 << 16 else "int32"
                _write(making, file, batches, token_type, options, progress)
            _put(making, folder)
    except OSError as error:
        raise DataFailed(
            f"the tokens of {path} cannot be written to {root}: {error.strerror}",
            hint="make room there, or name another folder with CALLBOARD_CACHE_DIR",
        ) from error
    return TokenizedFile(folder)


@contextmanager
def _making(root: Path) -> Iterator[Path]:
    """A folder to write in; it is gone afterwards unless it was renamed. What processes left that were killed goes too:
    a lock beside each folder is held while somebody writes there."""
    for left in root.glob(f"{_MAKING}*{_LOCK}"):
        with suppress(OSError), left.open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.with_suffix(""), ignore_errors=True)
            left.unlink()
    descriptor, name = tempfile.mkstemp(prefix=_MAKING, suffix=_LOCK, dir=root)
    making = Path(name).with_suffix("")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        making.mkdir()
        yield making
    finally:
        shutil.rmtree(making, ignore_errors=True)
        Path(name).unlink(missing_ok=True)
        os.close(descriptor)


def _put(making: Path, folder: Path) -> None:
    try:
        os.rename(making, folder)
    except OSError:
        # Another process was faster; what it put there is the same.
        if not (folder / _ABOUT).is_file():
            raise


def _key(path: Path, tokenizer: Tokenizer, options: DataOptions) -> str:
    parts = (str(VERSION), file_sha256(path), tokenizer.digest())
    return hashlib.sha256("\0".join(parts).encode() + msgspec.json.encode(options)).hexdigest()[:32]


def _write(
    folder: Path,
    file: DataFile,
    batches: Iterator[TokenBatch],
    token_type: str,
    options: DataOptions,
    progress: Callable[[Counts], None],
) -> None:
    counts, problems = Counts(), list[Problem]()
    lengths = [np.zeros(1, np.int64)]
    with (folder / _TOKENS).open("wb") as tokens, (folder / _LOSS).open("wb") as loss:
        for batch in batches:
            if batch.problems and not options.skip_bad:
                raise bad_record(file.path, batch.problems[0])
            tokens.write(batch.token_ids.astype(token_type).tobytes())
            loss.write(batch.loss_mask.astype(np.uint8).tobytes())
            lengths.append(batch.lengths)
            counts.add(batch.counts)
            problems += batch.problems[: MAX_PROBLEMS - len(problems)]
            progress(counts)
        _sync(tokens)
        _sync(loss)
    starts = np.cumsum(np.concatenate(lengths))
    with (folder / _STARTS).open("wb") as out:
        out.write(starts.tobytes())
        _sync(out)
    is_pairs = file.format.name == "preference"
    about = About(str(file.path), file.format.name, token_type, len(starts) - 1, is_pairs, counts, tuple(problems))
    with (folder / _ABOUT).open("wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(about)))
        _sync(out)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    if path.stat().st_size == 0:
        return np.empty(0, dtype)  # nothing cannot be mapped
    return np.memmap(path, dtype, mode="r")
