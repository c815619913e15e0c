"""A tokenizer of single bytes with a plain chat template, in a file without weights; and SmolLM2's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from callboard.actors.data.rendering import Renderer
from callboard.actors.models.store import ModelStore
from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.models.tokenizer_loading import load_tokenizer

sys.path.insert(0, str(Path(__file__).parent))  # helper modules beside the tests

from byte_tokenizer import TEMPLATE, write_tokenizer


@pytest.fixture(scope="session")
def make_renderer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Renderer]:
    """A renderer of the byte tokenizer with this chat template (None: with none)."""

    def make(template: str | None = TEMPLATE, name: str = "") -> Renderer:
        path = tmp_path_factory.mktemp("tokenizer") / "model.gguf"
        return Renderer(load_tokenizer(write_tokenizer(path, template)), name)

    return make


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "model.gguf")


@pytest.fixture(scope="session")
def tokenizer(model: Path) -> Tokenizer:
    return load_tokenizer(model)


@pytest.fixture(scope="session")
def renderer(tokenizer: Tokenizer) -> Renderer:
    return Renderer(tokenizer)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Pulled once per machine; the store's own lock lets parallel workers do it once."""
    store = ModelStore(Path.home() / ".cache" / "callboard-test" / "models")
    store.pull("smollm2")
    return store.path("smollm2")
