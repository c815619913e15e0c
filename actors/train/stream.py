"""The samples of each step: where in the data a run is, and which samples are kept aside for evaluation."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from ...runtime.errors import ConfigError
from ...schemas.train import EvaluationSettings
from ..data.dataset import TrainingData
from ..data.mixture import Drawn
from .batches import Item, item_of


class SampleStream:
    """Training samples in order from `position` on, a number that says all of where the stream is.

    A `share` of all samples, the same whatever their order, is not trained on. Raises ConfigError where that leaves
    nothing.
    """

    def __init__(self, data: TrainingData, share: float, seed: int) -> None:
        self.data = data
        self.share = share
        self.position = 0
        self._seed = seed
        self._drawn = data.mixture.samples()
        held = sum(self.is_held_out(Drawn(part, i)) for part, i in _places(data)) if share else 0
        self.num_samples = len(data) - held
        if not self.num_samples or (share and not held):
            raise ConfigError(
                f"a share of {share:g} of {len(data)} samples leaves {self.num_samples} to train on and {held} to "
                "evaluate on",
                hint="set `evaluation.share` otherwise, or name other data in `evaluation.data`",
            )

    def seek(self, position: int) -> None:
        self.position = position
        self._drawn = self.data.mixture.samples(position)

    def take(self, number: int) -> list[Item]:
        """The next `number` samples."""
        items: list[Item] = []
        for drawn in self._drawn:
            self.position += 1
            if not self.is_held_out(drawn):
                items.append(item_of(self.data.parts[drawn.part][drawn.sample]))
                if len(items) == number:
                    break
        return items

    def is_held_out(self, drawn: Drawn) -> bool:
        if not self.share:
            return False
        name = f"{self._seed}:{drawn.part}:{drawn.sample}"
        return zlib.crc32(name.encode()) < self.share * (1 << 32)

    def held_out(self, limit: int) -> list[Item]:
        """The first samples that are kept aside, at most `limit`."""
        return _first(
            (item_of(self.data.parts[part][i]) for part, i in _places(self.data) if self.is_held_out(Drawn(part, i))),
            limit,
        )


def evaluation_items(settings: EvaluationSettings, stream: SampleStream, other: TrainingData | None) -> list[Item]:
    """What is evaluated on: of `other`, the data named for it, or what the stream keeps aside; empty where neither."""
    if other is not None:
        return _first((item_of(other.parts[part][i]) for part, i in _places(other)), settings.samples)
    return stream.held_out(settings.samples) if settings.share else []


def _places(data: TrainingData) -> Iterator[tuple[int, int]]:
    return ((number, i) for number, part in enumerate(data.parts) for i in range(len(part)))


def _first(items: Iterator[Item], limit: int) -> list[Item]:
    found: list[Item] = []
    for item in items:
        if limit and len(found) == limit:
            break
        found.append(item)
    return found
