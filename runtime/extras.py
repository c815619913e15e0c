"""From a module that is not there to the extra that brings it."""

from __future__ import annotations

import re

from .errors import MissingExtra

_OURS = "callboard"


def missing_extra(error: ImportError, what: str) -> MissingExtra | None:
    """The error that names the extra, if `error` is for a module that one of our extras brings; else None.

    Read from our own metadata, so `pyproject.toml` stays the one list of what belongs to which extra.
    """
    import importlib.metadata  # with the parser of mail that it brings, a tenth of a process's start

    module = (error.name or "").partition(".")[0]
    for requirement in importlib.metadata.requires(_OURS) or ():
        name = re.match(r"[A-Za-z0-9_.-]+", requirement)
        extra = re.search(r"extra == ['\"]([^'\"]+)['\"]", requirement)
        if name and extra and name[0].lower().replace("-", "_") == module.lower():
            return MissingExtra.of(extra[1], what)
    return None
