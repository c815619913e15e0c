"""Libraries that a tool needs and an extra brings, imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

from ....runtime.errors import MissingExtra


def need(module: str, extra: str, what: str) -> Any:
    """The module. Raises MissingExtra, which names what to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra.of(extra, what) from error
