"""What is kept of an evaluation: each sample when it is done, so that nothing is asked twice, whatever was killed."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from ...runtime.errors import ModelDamaged, UsageError
from ...runtime.files import private_folder, write_private
from ...runtime.messages import UNDECODABLE
from ...schemas.evaluate import EvaluatedSample, EvaluationReport, Evaluations, EvaluationSummary
from ..models.evaluations import HEAD, LOCK, REPORT, SAMPLES, RecordHead, read_head, read_report

T = TypeVar("T")

_ANEW = "the same command with --again makes it anew"


class RecordBusy(UsageError):
    code = "evaluate.busy"
    default_hint = "wait for it, and give the same command again: its samples are kept"


class Record:
    """A record that this process writes. `samples`: what is done, by index; `report`: where all is.

    Raises RecordBusy where another process writes it, ModelDamaged where it cannot be read.
    """

    def __init__(self, root: Path, head: RecordHead, *, again: bool = False) -> None:
        self.folder = private_folder(root / head.id)
        self._lock = (self.folder / LOCK).open("w")
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RecordBusy(f"the evaluation {head.id} is being made already") from None
            if again:
                for name in (REPORT, SAMPLES, HEAD):
                    (self.folder / name).unlink(missing_ok=True)
            if not (self.folder / HEAD).exists():
                write_private(self.folder / HEAD, msgspec.json.format(msgspec.json.encode(head), indent=2))
            self.head = _read(self.folder, read_head)
            self.report = _read(self.folder, read_report)
            self.samples = {sample.index: sample for sample in read_samples(self.folder, mend=True)}
            self._file = (self.folder / SAMPLES).open("ab")
        except BaseException:
            self._lock.close()
            raise

    def add(self, sample: EvaluatedSample) -> None:
        """From here on it outlives this process."""
        self._file.write(msgspec.json.encode(sample) + b"\n")
        self._file.flush()
        self.samples[sample.index] = sample

    def finish(self, report: EvaluationReport) -> None:
        os.fsync(self._file.fileno())
        write_private(self.folder / REPORT, msgspec.json.format(msgspec.json.encode(report), indent=2))
        self.report = report

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        self._lock.close()


def read_samples(folder: Path, *, mend: bool = False) -> Iterator[EvaluatedSample]:
    """In the order in which they were done. A last line that a killed process did not finish is none yet; with `mend`
    it is taken away."""
    path = folder / SAMPLES
    try:
        file = path.open("r+b" if mend else "rb")
    except FileNotFoundError:
        return
    with file:
        whole = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                yield msgspec.json.decode(line, type=EvaluatedSample)
            except UNDECODABLE as error:
                raise ModelDamaged(f"{path}:{number} is damaged: {error}", hint=_ANEW) from error
            whole += len(line)
        if mend:
            file.truncate(whole)


def summaries(root: Path) -> Evaluations:
    """All records, the newest first."""
    found: list[EvaluationSummary] = []
    trouble: list[str] = []
    for path in root.glob(f"*/{HEAD}"):
        try:
            found.append(_summary(path.parent))
        except (*UNDECODABLE, OSError, ModelDamaged) as error:
            trouble.append(f"{path.parent.name} cannot be read: {error}")
    found.sort(key=lambda one: one.started, reverse=True)
    return Evaluations(tuple(found), tuple(trouble))


def find_record(root: Path, id: str) -> Path:
    """The folder of a record, by its id or the beginning of it. Raises UsageError."""
    usable = id.isalnum()
    found = sorted(path.parent for path in root.glob(f"{id}*/{HEAD}")) if usable else []
    if len(found) != 1:
        which = "is the beginning of several" if found else "is none"
        raise UsageError(f"'{id}' {which} of the evaluations that are kept", hint="`callboard eval --list` shows them")
    return found[0]


def kept_report(folder: Path) -> EvaluationReport:
    """Raises UsageError where it is not finished."""
    report = _read(folder, read_report)
    if report is None:
        raise UsageError(
            f"the evaluation {folder.name} is not finished", hint="the command that began it goes on with it"
        )
    return report


def kept_samples(folder: Path, *, wrong: bool = False) -> list[EvaluatedSample]:
    """In the order of the data. `wrong`: those that were answered wrongly alone."""
    samples = sorted(read_samples(folder), key=lambda sample: sample.index)
    return [sample for sample in samples if sample.is_right is False] if wrong else samples


def _summary(folder: Path) -> EvaluationSummary:
    head, report = read_head(folder), read_report(folder)
    model = report.models[0] if report is not None else None
    return EvaluationSummary(
        id=head.id,
        model=head.model,
        task=head.task,
        data=head.data,
        done=head.total if model is not None else sum(1 for _ in read_samples(folder)),
        total=head.total,
        metrics=model.metrics if model is not None else (),
        shots=head.shots,
        chat=head.chat,
        started=head.started,
        finished=model.finished if model is not None else 0.0,
    )


def _read(folder: Path, read: Callable[[Path], T]) -> T:
    try:
        return read(folder)
    except (*UNDECODABLE, OSError) as error:
        raise ModelDamaged(f"{folder} is damaged: {error}", hint=_ANEW) from error
