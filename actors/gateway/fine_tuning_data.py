"""Files that are trained on: whether they can be, and OpenAI's pairs of answers in the form that training reads.

Blocking, all of it: call it from a thread.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.errors import CallboardError
from ...runtime.files import private_folder
from .errors import BadBody

_PREFERENCE, _TEXT = "preference", "plain text"
_DOCS = "docs/gateway-openai.md has examples"


class _PairInput(msgspec.Struct):
    messages: list[dict[str, Any]]


class _Pair(msgspec.Struct):
    """A line of OpenAI's."""

    input: _PairInput
    preferred_output: list[dict[str, Any]]
    non_preferred_output: list[dict[str, Any]]


def prepared(path: Path, dpo: bool, place: Path, field: str) -> Path:
    """The file to train on: that at `path`, or `place`, written where the pairs are OpenAI's. Raises BadBody."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip()), b"")
    if not dpo or b"preferred_output" not in first:
        return path
    private_folder(place.parent)
    decode = msgspec.json.Decoder(_Pair).decode
    with path.open("rb") as file, place.open("wb") as out:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                pair = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise BadBody(f"{field}: line {number}: {error}", param=field) from error
            record = {
                "prompt": pair.input.messages,
                "chosen": pair.preferred_output,
                "rejected": pair.non_preferred_output,
            }
            out.write(msgspec.json.encode(record) + b"\n")
    return place


def num_samples(path: Path, dpo: bool, field: str) -> int:
    """How many there are to train on. Raises BadBody for what cannot be used, with its line."""
    from ..data.check import check  # it takes what a gateway alone does not need
    from ..data.options import DataOptions

    try:
        report = check(path, None, DataOptions())
    except CallboardError as error:
        raise BadBody(f"{field}: {error.message}", param=field) from error
    if report.num_problems:
        problem = report.problems[0]
        raise BadBody(f"{field}: line {problem.line}: {problem.reason}", param=field, hint=_DOCS)
    if report.container == _TEXT:
        raise BadBody(f"{field}: it is plain text: expected lines of JSON", param=field, hint=_DOCS)
    if dpo != (report.format == _PREFERENCE):
        wanted = "pairs of answers" if dpo else "chats"
        raise BadBody(f"{field}: its records are of the format {report.format}: expected {wanted}", param=field)
    if not report.counts.num_samples:
        raise BadBody(f"{field}: there is nothing to train on in it", param=field)
    return report.counts.num_samples


def steps_per_epoch(samples: int, batch: int) -> int:
    return math.ceil(samples / batch)
