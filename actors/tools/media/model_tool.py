"""What the tools with a model share: it is chosen by the settings, loaded before the first call, let go at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..context import ToolContext
from ..tool import Tool
from .models import LoadedModel, ModelKind, find_model, importing, load_model, unload
from .settings import model_hint, model_key, tool_setting


class ModelTool(Tool):
    """Derive, set `kind`, and load what stands beside the model in `load_parts`.

    `model` and `device` win over the settings `[tools] NAME_model`, `NAME_device` and `device`.
    """

    kind: ModelKind

    def __init__(self, model: str = "", device: str = "") -> None:
        self._model_name = model
        self._device = device
        self._loaded: LoadedModel | None = None
        # A call that was given up may compute still when the next one comes.
        self._computing = threading.Lock()

    def setup(self) -> None:
        """Raises ToolSetupFailed, MissingExtra, ConfigError."""
        folder = self.find()
        device = self.device_name()
        loaded = load_model(self.model_name(), folder, self.kind, self.info.name, device)
        self.load_parts(loaded)
        self._loaded = loaded

    def load_parts(self, loaded: LoadedModel) -> None:
        """Tokenizer, image processor and so on. Raises ToolSetupFailed."""
        raise NotImplementedError

    def drop_parts(self) -> None:
        """Forget what `load_parts` kept, so that the model goes with it."""
        raise NotImplementedError

    def close(self) -> None:
        with self._computing:
            self._loaded = None
            self.drop_parts()
        unload()

    def model_name(self) -> str:
        return tool_setting(model_key(self.info.name), self._model_name)

    def device_name(self) -> str:
        return tool_setting(f"{self.info.name}_device", self._device) or tool_setting("device")

    def find(self) -> Path:
        return find_model(self.model_name(), self.info.name, model_hint(self.info.name))

    @property
    def loaded(self) -> LoadedModel:
        assert self._loaded is not None, "a call comes after `setup`"
        return self._loaded

    @contextmanager
    def computing(self, context: ToolContext) -> Iterator[None]:
        """Alone with the model, without gradients. Raises Cancelled where the call was given up while it waited."""
        with importing(self.info.name):
            import torch
        with self._computing, torch.inference_mode():
            context.check()
            yield


def stopping(context: ToolContext) -> Any:
    """For `generate`: it ends after the token at which the call is given up."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Stop(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            import torch

            return torch.full((input_ids.shape[0],), context.cancelled, device=input_ids.device, dtype=torch.bool)

    return StoppingCriteriaList([Stop()])
