"""What a run says, for TensorBoard: `tensorboard --logdir FOLDER` while it trains or after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...runtime.log import log
from ...schemas.train import TrainEvaluated, TrainProgress, TrainSampled
from . import event_file
from .event_file import EventFile
from .history import MEASURED
from .hooks import Hook

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass
class TensorBoard(Hook):
    """Rank 0 writes, each event as it comes. A run that goes on begins a new file, which takes the place of the steps
    that are done again.

    A disk that takes no more is said once in the log: it ends no run, and what it did not take is missing.
    """

    folder: str
    _file: EventFile | None = field(default=None, init=False, repr=False)
    _has_failed: bool = field(default=False, init=False, repr=False)

    def after_step(self, trainer: Trainer, progress: TrainProgress) -> None:
        measured = [(f"train/{name}", getattr(progress, name)) for name in MEASURED]
        values = [(name, float(value)) for name, value in measured if value is not None]
        values += [(f"train/{name}", value) for name, value in progress.metrics]
        self._write(trainer, progress.step, event_file.scalars(values))
        if progress.skipped:
            self._write(trainer, progress.step, event_file.text("skipped", progress.skipped))

    def evaluated(self, trainer: Trainer, result: TrainEvaluated) -> None:
        self._write(trainer, result.step, event_file.scalars([("evaluation/loss", result.loss)]))

    def sampled(self, trainer: Trainer, sample: TrainSampled) -> None:
        number = trainer.config.samples.prompts.index(sample.prompt) + 1
        content = f"{_verbatim(sample.prompt)}\n\n---\n\n{_verbatim(sample.text)}"
        self._write(trainer, sample.step, event_file.text(f"samples/{number}", content))

    def ended(self, trainer: Trainer) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, trainer: Trainer, step: int, summary: bytes) -> None:
        if trainer.group.rank:
            return
        try:
            if self._file is None:
                self._file = self._begin(trainer, step)
            self._file.write(step, summary)
        except OSError as error:
            if not self._has_failed:
                log.warning("step %d and maybe others are missing in %s: %s", step, self.folder, error)
            self._has_failed = True

    def _begin(self, trainer: Trainer, step: int) -> EventFile:
        file = EventFile(Path(self.folder), step)
        settings = msgspec.json.format(msgspec.json.encode(trainer.config)).decode()
        file.write(step, event_file.text("settings", _verbatim(settings)))
        return file


def _verbatim(content: str) -> str:
    """As Markdown that shows each character as it is: lines of code."""
    return "\n".join(f"    {line}" for line in content.split("\n"))
