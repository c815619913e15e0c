"""What a trainer draws from: the tokenized files of one or several data sets, mixed by their weights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

from ...runtime.errors import ConfigError
from .errors import NoSuchData
from .lengths import Counts
from .mixture import Mixture, files_of, parse_sources
from .options import DataOptions
from .tokenized import Pair, Sequence, TokenizedFile, tokenized


class Part:
    """The files of one data set as one: their samples are numbered on from file to file."""

    def __init__(self, name: str, files: tuple[TokenizedFile, ...]) -> None:
        self.name = name
        self.files = files
        self._ends = list(accumulate(map(len, files)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Sequence | Pair:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        return self.files[number][index - (self._ends[number - 1] if number else 0)]


class TrainingData:
    """`len` is the samples of an epoch: of all parts together. `is_pairs`: samples are Pairs, else Sequences."""

    def __init__(self, parts: tuple[Part, ...], weights: tuple[float, ...] | None = None, seed: int = 0) -> None:
        """Raises NoSuchData for a part without samples, ConfigError where pairs are mixed with others."""
        for part in parts:
            if not len(part):
                raise NoSuchData(f"nothing to learn is left of {part.name}", hint=f"`callboard data check {part.name}`")
        kinds = {file.about.is_pairs for part in parts for file in part.files}
        if len(kinds) != 1:
            raise ConfigError("preferences cannot be mixed with other data", hint="train on them one after the other")
        self.parts = parts
        self.is_pairs = kinds.pop()
        self.mixture = Mixture([len(part) for part in parts], weights, seed)

    def __len__(self) -> int:
        return len(self.mixture)

    def samples(self, start: int = 0) -> Iterator[Sequence | Pair]:
        """An endless stream from position `start` on, the same from wherever it is entered."""
        for drawn in self.mixture.samples(start):
            yield self.parts[drawn.part][drawn.sample]

    def counts(self) -> Counts:
        total = Counts()
        for part in self.parts:
            for file in part.files:
                total.add(file.about.counts)
        return total


def load_data(
    text: str,
    model: Path,
    options: DataOptions,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress: Callable[[Path, Counts], None] = lambda path, counts: None,
) -> TrainingData:
    """The data that `text` names (`a.json:0.7,hf:ORG/NAME:0.3`), fetched and tokenized unless they are in the cache.

    Raises what `files_of` and `tokenized` raise, UsageError for weights that make no sense, and as TrainingData does.
    """
    sources = parse_sources(text)
    parts: list[Part] = []
    for source in sources:
        files: list[TokenizedFile] = []
        for path in files_of(source.name):

            def show(counts: Counts, path: Path = path) -> None:
                progress(path, counts)

            files.append(tokenized(path, model, options, workers=workers, progress=show))
        parts.append(Part(source.name, tuple(files)))
    weights = tuple(source.weight for source in sources if source.weight is not None)
    return TrainingData(tuple(parts), weights or None, seed)
