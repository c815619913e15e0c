"""The bindings of the app, its pages and its widgets, read from their classes: what the palette offers, and the names
by which a person may remap keys."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

from textual.binding import Binding

_PACKAGE = __package__ or "callboard.tui"


def bindings_of(cls: type) -> dict[str, list[Binding]]:
    """Ours of a class and of those that it derives from, by id, with one for each key. Textual's own are left out."""
    found: dict[str, list[Binding]] = {}
    for base in cls.__mro__:
        if base.__module__.startswith(f"{_PACKAGE}."):
            for binding in Binding.make_bindings(base.__dict__.get("BINDINGS", ())):
                found.setdefault(binding.id or "", []).append(binding)
    return found


def modules_with_bindings() -> list[str]:
    """Where the classes are. To import them all takes some tenths of a second."""
    names = [f"{_PACKAGE}.app"]
    for folder in ("screens", "widgets"):
        package = importlib.import_module(f"{_PACKAGE}.{folder}")
        names += [module.name for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    return names


def classes_with_bindings() -> Iterator[type]:
    """All of them. Imports every page and widget."""
    for name in modules_with_bindings():
        for cls in vars(importlib.import_module(name)).values():
            if isinstance(cls, type) and cls.__module__ == name and bindings_of(cls):
                yield cls


def known_names() -> list[str]:
    """Every name that a person may use in `[tui.keys]`. Imports every page and widget."""
    return sorted({id for cls in classes_with_bindings() for id in bindings_of(cls)})
