"""Where evaluations are kept: a folder for each model and exam, beside the folder of the store.

evaluations/ID/
    head.json       what it is of, written first
    samples.jsonl   a line for each sample that was done, in the order in which they were
    report.json     what came of it, when all are
    lock            held by the one process that may write
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from ...runtime.errors import ModelError
from ...runtime.messages import UNDECODABLE
from ...schemas.evaluate import EvaluationReport, EvaluationResult, LeftOut
from .digest import model_digest
from .store import ModelStore, is_path

HEAD, SAMPLES, REPORT, LOCK = "head.json", "samples.jsonl", "report.json", "lock"


class RecordHead(msgspec.Struct, frozen=True, kw_only=True):
    """What a record is of: the settings of its request, and `questions`, the digest of what is asked. `total`: samples
    to be asked; `left_out`: those that are not. `started`: seconds since 1970."""

    id: str
    model: str
    digest: str
    dtype: str
    compute_dtype: str
    kv_cache: str
    context_length: int
    questions: str
    task: str
    data: str
    data_sha256: str
    shots: int
    shots_from: str
    limit: int
    seed: int
    chat: bool
    max_tokens: int
    total: int
    left_out: tuple[LeftOut, ...] = ()
    started: float = 0.0


def evaluations_root(store: ModelStore) -> Path:
    return store.root.parent / "evaluations"


def read_head(folder: Path) -> RecordHead:
    return msgspec.json.decode((folder / HEAD).read_bytes(), type=RecordHead)


def read_report(folder: Path) -> EvaluationReport | None:
    """None while there is none."""
    try:
        return msgspec.json.decode((folder / REPORT).read_bytes(), type=EvaluationReport)
    except FileNotFoundError:
        return None


def evaluations_of(store: ModelStore, name: str, troubles: list[str]) -> Iterator[EvaluationResult]:
    """The finished ones of a model as it is now, the oldest first. What cannot be read is added to `troubles`."""
    name = str(Path(name).expanduser().absolute()) if is_path(name) else name
    found: list[tuple[RecordHead, EvaluationReport]] = []
    for path in sorted(evaluations_root(store).glob(f"*/{HEAD}")):
        try:
            head, report = read_head(path.parent), read_report(path.parent)
        except (*UNDECODABLE, OSError) as error:
            troubles.append(f"the evaluation {path.parent.name} cannot be read: {error}")
            continue
        # The digest of a path is that of all its bytes, which are not read for the sake of other models' records.
        if report is not None and (head.model == name or not is_path(name)):
            found.append((head, report))
    if not found:
        return
    try:
        digest = model_digest(store, name)
    except ModelError as error:
        troubles.append(f"its evaluations cannot be told: {error}")
        return
    for head, report in sorted(found, key=lambda one: one[1].models[0].finished):
        if head.digest == digest:
            (model,) = report.models
            yield EvaluationResult(
                id=head.id,
                task=head.task,
                data=head.data,
                questions=head.questions,
                metrics=model.metrics,
                samples=report.samples,
                num_left_out=report.num_left_out,
                shots=head.shots,
                chat=head.chat,
                finished=model.finished,
            )
