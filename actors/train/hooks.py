"""What users add to a run without touching its loop.

A hook is a data class of the user's own, found by its name and made from its options:

    @dataclass
    class Remember(Hook):
        file: str
        every: int = 10

        def after_step(self, trainer: Trainer, progress: TrainProgress) -> None: ...

    [[hooks]]
    kind = "my_package.hooks:Remember"
    options = '{"file": "losses.txt"}'

Hooks run on every shard, in the thread that trains; `trainer.group.rank` says which shard it is. One that raises ends
the run.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...runtime.errors import ConfigError
from ...schemas.train import HookSettings, TrainEvaluated, TrainProgress, TrainSampled

if TYPE_CHECKING:
    from .trainer import Trainer


class Hook:
    def before_step(self, trainer: Trainer, step: int) -> None: ...

    def after_step(self, trainer: Trainer, progress: TrainProgress) -> None: ...

    def evaluated(self, trainer: Trainer, result: TrainEvaluated) -> None: ...

    def sampled(self, trainer: Trainer, sample: TrainSampled) -> None: ...

    def checkpointed(self, trainer: Trainer, folder: Path) -> None: ...

    def ended(self, trainer: Trainer) -> None: ...


def build_hook(settings: HookSettings) -> Hook:
    """Raises ConfigError where there is no such class, or its options do not fit."""
    module, colon, name = settings.kind.partition(":")
    try:
        kind = getattr(importlib.import_module(module), name) if colon else None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the hook '{settings.kind}' cannot be loaded: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Hook)):
        raise ConfigError(
            f"'{settings.kind}' is no hook", hint="name a subclass of callboard.actors.train.hooks.Hook as module:Class"
        )
    try:
        return msgspec.json.decode(settings.options, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, TypeError) as error:
        raise ConfigError(f"the options of the hook '{settings.kind}' do not fit: {error}") from error
