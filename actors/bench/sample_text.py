"""A text that every installation has: the documentation strings of Python's own library, of modules that are prose
enough to be read. Perplexities are compared within a run, so it need not be the same in every Python."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

MODULES = (
    "argparse", "ast", "asyncio", "calendar", "collections", "contextlib", "csv", "dataclasses", "datetime", "decimal",
    "difflib", "doctest", "email.message", "fractions", "functools", "heapq", "inspect", "ipaddress", "json", "locale",
    "logging", "optparse", "os", "pathlib", "pickle", "pprint", "random", "shutil", "socket", "statistics", "string",
    "subprocess", "tarfile", "tempfile", "textwrap", "threading", "typing", "unittest", "urllib.request", "zipfile",
)  # fmt: skip
# Shorter ones are hardly prose.
LEAST_CHARS = 120


def sample_texts(num_chars: int, chunk_chars: int) -> tuple[str, ...]:
    """`num_chars` characters in chunks of `chunk_chars`."""
    text = ""
    for doc in _docs():
        if len(text) >= num_chars:
            break
        text += doc + "\n\n"
    text = text[:num_chars]
    return tuple(text[at : at + chunk_chars] for at in range(0, len(text), chunk_chars))


def _docs() -> Iterator[str]:
    seen: set[str] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        things = [module, *(thing for _, thing in sorted(vars(module).items(), key=lambda pair: pair[0]))]
        for thing in things:
            own = thing is module or getattr(thing, "__module__", None) == name
            doc = inspect.getdoc(thing) if own else None
            if doc and len(doc) >= LEAST_CHARS and doc not in seen:
                seen.add(doc)
                yield doc
