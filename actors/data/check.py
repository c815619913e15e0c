"""What `callboard data check` finds in a file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec

from .ahead import tokenize_ahead
from .data_file import DataFile, Problem, open_data
from .errors import UnknownFormat
from .lengths import Counts
from .options import DataOptions

# So many problems of a file are listed; all are counted.
MAX_LISTED = 100


class Report(msgspec.Struct, frozen=True):
    """`has_tokens`: a model was given, so tokens were counted. `format` is empty where none was recognised."""

    file: str
    format: str
    container: str
    has_tokens: bool
    counts: Counts
    num_problems: int
    problems: tuple[Problem, ...]


def check(path: Path, model: Path | None, options: DataOptions, workers: int | None = None) -> Report:
    """Reads the whole file. Raises NoSuchData, and UnknownFormat for what holds no records at all."""
    try:
        file = open_data(path)
    except UnknownFormat as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        return Report(str(path), "", "", False, Counts(), 1, (Problem(1, reason),))
    counts, problems = Counts(), list[Problem]()
    if model is None:
        _read(file, counts, problems)
    else:
        with closing(tokenize_ahead(file, model, options, workers)) as batches:
            for batch in batches:
                counts.add(batch.counts)
                problems += batch.problems[: MAX_LISTED - len(problems)]
    return Report(
        str(path),
        file.format.name,
        file.container.kind.value,
        model is not None,
        counts,
        counts.num_bad,
        tuple(problems),
    )


def _read(file: DataFile, counts: Counts, problems: list[Problem]) -> None:
    for _, sample in file.samples():
        counts.num_records += 1
        if not isinstance(sample, Problem):
            counts.num_samples += 1
            continue
        counts.num_bad += 1
        if len(problems) < MAX_LISTED:
            problems.append(sample)
