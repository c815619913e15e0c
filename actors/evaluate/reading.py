"""A file of samples as questions: its format is told from its content, and every record must be of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.errors import UsageError
from ..data.containers import Kind as ContainerKind
from ..data.containers import open_container
from ..data.errors import BadRecord, Unfit, UnknownFormat
from ..models.http_files import file_sha256
from .documents import documents, lines_of
from .format import Format
from .formats_answer import ANSWER_FORMATS
from .formats_choice import CHOICE_FORMATS
from .question import Kind, Question

FORMATS: tuple[Format, ...] = (*CHOICE_FORMATS, *ANSWER_FORMATS)
TASKS = {one.name: one for one in FORMATS}

_DOCS = "docs/evaluation.md shows each format with an example"
_LETTERS = ("A", "B", "C", "D")
# MMLU's files have no header: question, four choices, letter. Some who pass them on add one.
_CSV_HEADER = ["question", "a", "b", "c", "d", "answer"]
# The subject of one of MMLU's files is in its name.
_MMLU_PARTS = ("_test", "_dev", "_val")


@dataclass(frozen=True)
class TestSet:
    """The samples of a file, in its order."""

    __test__ = False  # no class of tests

    path: Path
    sha256: str
    format: Format
    questions: tuple[Question, ...]


def task_of(name: str) -> Format | None:
    """The format that a task names; None for "". Raises UsageError."""
    if not name:
        return None
    if name not in TASKS:
        close = get_close_matches(name, TASKS, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(TASKS)}"
        raise UsageError(f"there is no task '{name}'", hint=hint)
    return TASKS[name]


def read_test_set(path: Path, task: str = "") -> TestSet:
    """Raises NoSuchData, UnknownFormat, BadRecord, UsageError."""
    wanted = task_of(task)
    container = open_container(path)
    is_text = container.kind in (ContainerKind.TEXT, ContainerKind.CSV)
    if is_text:
        values = _of_text(path, wanted)
    else:
        values = _of_json(path, container.records())
    format = wanted
    questions: list[Question] = []
    for line, value in values:
        format = format or _detected(path, line, value)
        try:
            question = format.read(value)
        except Unfit as unfit:
            raise _bad(path, line, format, value, str(unfit)) from unfit
        for lines, text in documents(question.prompt) if format.kind is Kind.TEXT else ((0, question.prompt),):
            at = line + lines if is_text else line
            questions.append(msgspec.structs.replace(question, index=len(questions), line=at, prompt=text))
    if format is None or not questions:
        raise UnknownFormat(f"{path} has no records", hint=_DOCS)
    return TestSet(path, file_sha256(path), format, tuple(questions))


def _detected(path: Path, line: int, value: dict[str, Any]) -> Format:
    found = next((one for one in FORMATS if one.recognises(value)), None)
    if found is None:
        fields = ", ".join(sorted(value)) or "none"
        raise UnknownFormat(f"{path}:{line}: it fits no format of samples: its fields are {fields}", hint=_DOCS)
    return found


def _bad(path: Path, line: int, format: Format, value: dict[str, Any], reason: str) -> BadRecord:
    others = [one.name for one in FORMATS if one is not format and one.recognises(value)]
    if others and not format.recognises(value):
        reason = f"it is of the format {others[0]} (the file's is {format.name})"
    return BadRecord(f"{path}:{line}: {reason}", hint=f"mend the record, or name another --task; {_DOCS}")


def _of_json(path: Path, records: Iterator[Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    for record in records:
        try:
            value = None if record.problem else msgspec.json.decode(record.json)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadRecord(f"{path}:{record.line}: it is no JSON: {error}", hint="mend the record") from error
        if not isinstance(value, dict):
            reason = record.problem or "it is no JSON object"
            raise BadRecord(f"{path}:{record.line}: {reason}", hint="mend the record")
        yield record.line, value


def _of_text(path: Path, wanted: Format | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of rows, MMLU's; of a plain text all of it, or a passage a line where last words are asked for."""
    try:
        content = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnknownFormat(f"{path} is no UTF-8 text: {error}", hint=_DOCS) from error
    is_mmlu = wanted is not None and wanted.name == "mmlu"
    if is_mmlu or (wanted is None and (path.suffix.lower() == ".csv" or _begins_with_row(content))):
        yield from _of_rows(path, content)
    elif wanted is not None and wanted.kind is Kind.LAST_WORD:
        yield from ((line, {"text": text}) for line, text in lines_of(content))
    elif wanted is None or wanted.kind is Kind.TEXT:
        yield 1, {"text": content}
    else:
        raise UnknownFormat(f"{path}:1: it is plain text, and no record of the task {wanted.name}", hint=_DOCS)


def _of_rows(path: Path, content: str) -> Iterator[tuple[int, dict[str, Any]]]:
    subject = next((path.stem.removesuffix(part) for part in _MMLU_PARTS if path.stem.endswith(part)), "")
    try:
        rows = list(_rows(content))
    except csv.Error as error:
        raise BadRecord(f"{path} is no CSV: {error}", hint="mend its quotes") from error
    for number, (line, row) in enumerate(rows):
        if number == 0 and [cell.strip().lower() for cell in row] == _CSV_HEADER:
            continue
        if len(row) != 6:
            raise UnknownFormat(
                f"{path}:{line}: it has {len(row)} columns; MMLU's six are a question, four choices and a letter",
                hint=_DOCS,
            )
        if row[5].strip() not in _LETTERS:
            raise BadRecord(
                f"{path}:{line}: the answer is {row[5]!r}, out of range: it should be A, B, C or D",
                hint="mend the record",
            )
        yield line, {"question": row[0], "choices": row[1:5], "answer": row[5].strip(), "subject": subject}


def _rows(content: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of each row that is not blank."""
    reader = csv.reader(io.StringIO(content, newline=""))
    line = 1
    for row in reader:
        if row:
            yield line, row
        line = reader.line_num + 1


def _begins_with_row(content: str) -> bool:
    try:
        _, row = next(_rows(content))
    except csv.Error:
        return False
    return len(row) == 6 and (row[5].strip() in _LETTERS or [cell.strip().lower() for cell in row] == _CSV_HEADER)
