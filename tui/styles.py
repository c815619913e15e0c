"""The style of a widget lies in the `.tcss` file beside its module."""

from __future__ import annotations

from pathlib import Path


def beside(module_file: str) -> str:
    """The text of the `.tcss` file beside a module: `DEFAULT_CSS = beside(__file__)`."""
    return Path(module_file).with_suffix(".tcss").read_text(encoding="utf-8")
