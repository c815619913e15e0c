"""What the tools with a model share: it is chosen by their options, loaded before the first call, let go at the end."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from ..context import ToolContext
from ..tool import Tool
from .models import LoadedModel, ModelKind, find_model, importing, load_model, unload


class ModelOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table `[tools.NAME]` of a tool with a model: a folder, or a model of the store (`hf:ORG/NAME`); and `cpu`,
    `cuda`, `cuda:1` and so on, empty for the first card where there is one."""

    model: str = ""
    device: str = ""


class LocalModel(Tool, ABC):
    """A tool with a model of this machine, found by its options and used by one call at a time."""

    def __init__(self, model: str = "", device: str = "") -> None:
        self.model = model
        self.device = device
        # A call that was given up may compute still when the next one comes.
        self._computing = threading.Lock()

    @abstractmethod
    def drop_parts(self) -> None:
        """Forget what `setup` kept, so that the model goes with it."""

    def close(self) -> None:
        with self._computing:
            self.drop_parts()
        unload()

    def find(self) -> Path:
        return find_model(self.model, self.info.name, where_set(self.info.name))

    @contextmanager
    def computing(self, context: ToolContext) -> Iterator[None]:
        """Alone with the model, without gradients. Raises Cancelled where the call was given up while it waited."""
        with importing(self.info.name):
            import torch
        with self._computing, torch.inference_mode():
            context.check()
            yield


class ModelTool(LocalModel, ABC):
    """Derive, set `kind`, and load what stands beside the model in `load_parts`."""

    kind: ModelKind
    _loaded: LoadedModel | None = None

    def setup(self) -> None:
        """Raises ToolSetupFailed, MissingExtra, ConfigError."""
        loaded = load_model(self.model, self.find(), self.kind, self.info.name, self.device)
        self.load_parts(loaded)
        self._loaded = loaded

    @abstractmethod
    def load_parts(self, loaded: LoadedModel) -> None:
        """Tokenizer, image processor and so on. Raises ToolSetupFailed."""

    def close(self) -> None:
        with self._computing:
            self._loaded = None
            self.drop_parts()
        unload()

    @property
    def loaded(self) -> LoadedModel:
        assert self._loaded is not None, "a call comes after `setup`"
        return self._loaded


def where_set(tool: str) -> str:
    """What to change for another model, for an error."""
    return f"`model` in the table [tools.{tool}] of callboard.toml"


def stopping(context: ToolContext) -> Any:
    """For `generate`: it ends after the token at which the call is given up."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            import torch

            return torch.full((input_ids.shape[0],), context.cancelled, device=input_ids.device, dtype=torch.bool)

    return StoppingCriteriaList([Stop()])
