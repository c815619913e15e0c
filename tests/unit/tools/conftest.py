"""The helper modules of these tests are importable as they are; tiny models for the tools that work with one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """`model("detector")`: the folder of a tiny model, made once."""
    import media_models

    base = tmp_path_factory.mktemp("media-models")
    made: dict[str, Path] = {}

    def folder(name: str, *options: Any) -> str:
        key = "-".join((name, *options))
        if key not in made:
            made[key] = getattr(media_models, name)(base / key, *options)
        return str(made[key])

    return folder
