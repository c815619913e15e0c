"""A look at training data while a run is set up: the beginning of each file, with a bound on records and time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import msgspec

from ...schemas.train import CheckData, CheckedFile, DataChecked, DataProblem, Task
from ..data.batches import render_record
from ..data.data_file import DataFile, Problem, open_data, read_record
from ..data.errors import UnknownFormat
from ..data.hub_data import is_data_name
from ..data.mixture import files_of, parse_sources
from ..data.rendering import Rendered, RenderedPair, Renderer
from ..data.samples import Conversation, Document, Preference, Sample
from ..data.show import bracketed
from ..models.store import ModelStore
from ..models.tokenizer_loading import load_tokenizer

MAX_LISTED = 20
MAX_SAMPLE = 4000


def look_at_data(message: CheckData, given_up: threading.Event) -> DataChecked:
    """Blocking. Ends early, with what it has, when `given_up` is set. Raises NoSuchData, UsageError, ModelError."""
    until = time.monotonic() + message.seconds
    sources = parse_sources(message.data)
    there = [source.name for source in sources if not is_data_name(source.name)]
    paths = [path for name in there for path in files_of(name)]
    renderer = Renderer(load_tokenizer(ModelStore().path(message.model)), message.template) if message.model else None

    def is_over() -> bool:
        return given_up.is_set() or time.monotonic() > until

    files = tuple(_look(path, message, renderer, is_over) for path in paths)
    return DataChecked(files, tuple(source.name for source in sources if is_data_name(source.name)))


def _look(path: Path, message: CheckData, renderer: Renderer | None, is_over: Callable[[], bool]) -> CheckedFile:
    try:
        file = open_data(path)
    except UnknownFormat as error:
        reason = str(error).removeprefix(f"{path}: ").removeprefix(f"{path} ")
        return CheckedFile(file=str(path), num_bad=1, problems=(DataProblem(1, reason),))
    found = _Found(file, message, renderer)
    return found.read(is_over)


class _Found:
    def __init__(self, file: DataFile, message: CheckData, renderer: Renderer | None) -> None:
        self._file = file
        self._message = message
        self._renderer = renderer
        self._problems: list[DataProblem] = []
        self._counts = CheckedFile(file=str(file.path), format=file.format.name, container=file.container.kind.value)
        self._kinds: dict[str, None] = {}

    def read(self, is_over: Callable[[], bool]) -> CheckedFile:
        numbers = dict.fromkeys(("records", "samples", "bad", "tokens", "loss_tokens", "too_long"), 0)
        complete, sample = True, ""
        for record in islice(self._file.records(), self._message.max_records + 1):
            if numbers["records"] == self._message.max_records or is_over():
                complete = False
                break
            numbers["records"] += 1
            found = read_record(record, self._file.format)
            rendered: Rendered | RenderedPair | None = None
            if not isinstance(found, Problem) and (words := _unfit(found, self._message.task)):
                found = Problem(record.line, words)
            if not isinstance(found, Problem) and self._renderer is not None:
                tried = render_record(record, self._file.format, self._renderer)
                if isinstance(tried, Problem):
                    found = tried
                else:
                    rendered = tried
            if isinstance(found, Problem):
                numbers["bad"] += 1
                if len(self._problems) < MAX_LISTED:
                    self._problems.append(DataProblem(found.line, found.reason))
                continue
            numbers["samples"] += 1
            self._kinds[_kind(found)] = None
            for one in _sequences(rendered):
                numbers["tokens"] += one.num_tokens
                numbers["loss_tokens"] += one.num_loss_tokens
                numbers["too_long"] += 0 < self._message.max_tokens < one.num_tokens
            sample = sample or _shown(found, rendered)
        return msgspec.structs.replace(
            self._counts,
            complete=complete,
            kinds=tuple(self._kinds),
            sample=sample[:MAX_SAMPLE],
            problems=tuple(self._problems),
            **{f"num_{name}": number for name, number in numbers.items()},
        )


def _unfit(sample: Sample, task: Task) -> str:
    wants_pairs = task is not Task.SFT
    if wants_pairs and not isinstance(sample, Preference):
        return f"{task} learns from a chosen and a rejected answer, and this is a {_kind(sample)}"
    if isinstance(sample, Preference) and not wants_pairs:
        return "it is a pair of a chosen and a rejected answer, which sft does not learn from"
    return ""


def _kind(sample: Sample) -> str:
    match sample:
        case Conversation():
            return "conversation"
        case Document():
            return "document"
        case Preference():
            return "preference"


def _sequences(rendered: Rendered | RenderedPair | None) -> tuple[Rendered, ...]:
    match rendered:
        case None:
            return ()
        case RenderedPair():
            return rendered.chosen, rendered.rejected
        case _:
            return (rendered,)


def _shown(sample: Sample, rendered: Rendered | RenderedPair | None) -> str:
    match rendered, sample:
        case RenderedPair(), _:
            return bracketed(rendered.chosen)
        case Rendered(), _:
            return bracketed(rendered)
        case _, Document():
            return sample.text
        case _, Conversation():
            return "\n".join(f"{turn.role}: {turn.content}" for turn in sample.turns)
        case _:
            return "\n".join(f"{turn.role}: {turn.content}" for turn in (*sample.prompt, *sample.chosen))
