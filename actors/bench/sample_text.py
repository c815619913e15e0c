"""A text that every installation has: the documentation strings of Python's own library, of modules that are prose
enough to be read. Perplexities are compared within a run, so it need not be the same in every Python."""

from __future__ import annotations

import importlib
import inspect
import operator
import warnings
from collections.abc import Iterator
from types import ModuleType

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
    for doc in _docs(members=False):
        if len(text) >= num_chars:
            break
        text += doc + "\n\n"
    text = text[:num_chars]
    return tuple(text[at : at + chunk_chars] for at in range(0, len(text), chunk_chars))


def divided(every: int) -> tuple[str, str]:
    """One in `every` of all documentation strings, those of classes' members among them, and the rest without those
    that have a paragraph of the first: two texts of one kind, of which neither says anything of the other."""
    docs = list(_docs(members=True))
    some = docs[::every]
    said = {paragraph for doc in some for paragraph in _paragraphs(doc)}
    rest = (doc for index, doc in enumerate(docs) if index % every and said.isdisjoint(_paragraphs(doc)))
    return "\n\n".join(some), "\n\n".join(rest)


def _paragraphs(doc: str) -> list[str]:
    return [paragraph for paragraph in doc.split("\n\n") if len(paragraph) >= LEAST_CHARS]


def _docs(*, members: bool) -> Iterator[str]:
    seen: set[str] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        for thing in _things(module, members=members):
            with warnings.catch_warnings():  # some of it goes with the next Python
                warnings.simplefilter("ignore", DeprecationWarning)
                doc = inspect.getdoc(thing)
            if doc and len(doc) >= LEAST_CHARS and doc not in seen:
                seen.add(doc)
                yield doc


def _things(module: ModuleType, *, members: bool) -> Iterator[object]:
    """The module and what it defines itself, in the order of their names."""
    yield module
    for _, thing in _by_name(module):
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        yield thing
        if members and inspect.isclass(thing):
            yield from (
                member
                for name, member in _by_name(thing)
                if not name.startswith("_") and (callable(member) or isinstance(member, property))
            )


def _by_name(thing: object) -> list[tuple[str, object]]:
    return sorted(vars(thing).items(), key=operator.itemgetter(0))
