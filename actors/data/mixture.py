"""Several data sets in one stream, each with a weight: `a.json:0.7,b.jsonl:0.3`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import UsageError
from .errors import NoSuchData
from .hub_data import fetch_data, is_data_name
from .shuffle import key_of, permuted, uniform

# Positions that are drawn at once.
_DRAWN_AT_ONCE = 4096
_COUNTED_AT_ONCE = 1 << 20


class Source(NamedTuple):
    """A data set by its name, a path or one of a hub; `weight` None: as many samples as it has."""

    name: str
    weight: float | None = None


def parse_sources(text: str) -> tuple[Source, ...]:
    """`NAME[:WEIGHT],...`. A text that is itself a file's path is that file. Raises UsageError."""
    if os.path.exists(text):
        return (Source(text),)
    sources = tuple(map(_source, text.split(",")))
    weighted = [source for source in sources if source.weight is not None]
    if weighted and len(weighted) < len(sources):
        missing = next(source.name for source in sources if source.weight is None)
        raise UsageError(f"'{missing}' has no weight and others have", hint="give all of them one, or none")
    return sources


def _source(part: str) -> Source:
    name, colon, weight = part.strip().rpartition(":")
    if not colon or not name:
        return Source(part.strip())
    try:
        value = float(weight)
    except ValueError:
        return Source(part.strip())
    if not 0 < value < float("inf"):
        raise UsageError(f"the weight of '{name}' is {weight}", hint="weights are numbers above 0")
    return Source(name, value)


def files_of(name: str) -> list[Path]:
    """The files that a data set's name stands for; one of a hub is fetched. Raises NoSuchData, PullFailed."""
    if is_data_name(name):
        return fetch_data(name)
    path = Path(name).expanduser()
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is not there"
        raise NoSuchData(f"{name} {what}", hint="give a file of records, hf:ORG/NAME or ms:ORG/NAME")
    return [path]


class Drawn(NamedTuple):
    """A sample of a mixture: the `sample`-th of its `part`-th data set."""

    part: int
    sample: int


class Mixture:
    """An endless order of samples from several data sets of `sizes` samples.

    Which data set a position's sample comes from is drawn by the weights, independently at each position. Within a data
    set every sample comes once before any comes again, and each pass has an order of its own. Without weights every
    data set has its size for one, so that all passes end at about the same time.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None = None, seed: int = 0) -> None:
        if not sizes or min(sizes) <= 0:
            raise NoSuchData("a data set of the mixture has no samples")
        self.sizes = tuple(sizes)
        shares = np.array(sizes if weights is None else weights, np.float64)
        self._borders = np.cumsum(shares / shares.sum())[:-1]
        self._key = key_of(seed, 1)
        self._seed = seed

    def __len__(self) -> int:
        """The samples of all data sets together: what is called an epoch."""
        return sum(self.sizes)

    def samples(self, start: int = 0) -> Iterator[Drawn]:
        """The order from position `start` on, the same however often and from wherever it is entered."""
        taken = self._taken_before(start)
        for first in count(start, _DRAWN_AT_ONCE):
            for part in self._parts(first, _DRAWN_AT_ONCE).tolist():
                yield Drawn(part, self._index(part, taken[part]))
                taken[part] += 1

    def _parts(self, start: int, number: int) -> NDArray[np.intp]:
        return np.searchsorted(self._borders, uniform(start, number, self._key), side="right")

    def _taken_before(self, position: int) -> list[int]:
        """How many samples of each data set come before a position."""
        taken = np.zeros(len(self.sizes), np.int64)
        for start in range(0, position, _COUNTED_AT_ONCE):
            parts = self._parts(start, min(_COUNTED_AT_ONCE, position - start))
            taken += np.bincount(parts, minlength=len(self.sizes))
        return taken.tolist()

    def _index(self, part: int, number: int) -> int:
        size = self.sizes[part]
        return permuted(number % size, size, key_of(self._seed, 2, part, number // size))
