"""What installed packages announce as entry points: actor kinds, checks, commands, planners of
agents, search engines, tools.

Nothing is imported to list them. Reading the metadata of a full environment takes tens of ms, which `callboard --help`
cannot spare, so what was found is kept in the cache folder until a folder of the module search path changes, as it does
when a package comes or goes. The summary of a command is kept beside it until the command's file changes. Standard
library only, for the same reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .files import write_private
from .folders import Paths

if TYPE_CHECKING:
    import importlib.metadata

ACTORS = "callboard.actors"
CHECKS = "callboard.checks"
COMMANDS = "callboard.commands"
PLANNERS = "callboard.planners"
SEARCH = "callboard.search"
TOOLS = "callboard.tools"

_GROUPS = (ACTORS, CHECKS, COMMANDS, PLANNERS, SEARCH, TOOLS)
_OURS = "callboard"


@dataclass(frozen=True, slots=True)
class Entry:
    """One announced name. `value` is `module:attribute`, `package` the distribution that announces it."""

    name: str
    value: str
    package: str

    def load(self) -> Any:
        """Imports the module and returns the attribute. ImportError and AttributeError are the caller's."""
        module, _, attribute = self.value.partition(":")
        return getattr(importlib.import_module(module), attribute)


class Registry:
    """The entries of all groups, read from `cache` (a folder) if they are still true, else from the metadata.

    Where two packages announce one name, ours wins, then the first on the search path.
    """

    def __init__(self, cache: Path) -> None:
        prefix = hashlib.sha256(sys.prefix.encode()).hexdigest()[:12]
        self._path = cache / f"entry-points-{prefix}.json"
        self._key = _cache_key()
        known = self._read()
        if known.get("key") != self._key:
            # Importing a module for its summary may itself touch a folder on the path (`__pycache__`); summaries stand
            # and fall with the file that each came from.
            known = {"key": self._key, "groups": _scan(), "summaries": known.get("summaries", {})}
            self._write(known)
        self._known = known

    def entries(self, group: str) -> dict[str, Entry]:
        """By name, in order of the alphabet."""
        return {name: Entry(name, *found) for name, found in sorted(self._known["groups"][group].items())}

    def summaries(self) -> dict[str, str]:
        """The one-line summary of every command. Imports those whose file is new or has changed since."""
        kept: dict[str, list[Any]] = self._known["summaries"]
        found: dict[str, list[Any]] = {}
        for entry in self.entries(COMMANDS).values():
            last = kept.get(entry.value)
            if last is not None and last[1] == _modified(last[0]):
                found[entry.value] = last
            else:
                found[entry.value] = _summary(entry)
        if found != kept:
            self._known["summaries"] = found
            self._write(self._known)
        return {name: found[entry.value][2] for name, entry in self.entries(COMMANDS).items()}

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, known: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # a folder that cannot be written costs time and nothing else
            write_private(self._path, json.dumps(known))


def registry() -> Registry:
    """The registry of this environment, with its cache in the usual folder."""
    return Registry(Paths.find().cache)


def _search_path() -> list[str]:
    # The working folder is there for `python -m` and in notebooks: what lies in it by chance is not installed.
    here = os.getcwd()
    return [entry for entry in sys.path if entry and os.path.isdir(entry) and not os.path.samefile(entry, here)]


def _cache_key() -> list[Any]:
    from .. import __version__

    return [__version__, sys.version, *_GROUPS, [[entry, _modified(entry)] for entry in _search_path()]]


def _modified(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _scan() -> dict[str, dict[str, list[str]]]:
    import importlib.metadata

    groups: dict[str, dict[str, list[str]]] = {group: {} for group in _GROUPS}
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions(path=_search_path()):
        package = _name(distribution).lower().replace("_", "-")
        if package in seen:
            continue
        seen.add(package)
        for entry in distribution.entry_points:
            if entry.group not in groups:
                continue
            names = groups[entry.group]
            if entry.name not in names or package == _OURS:
                names[entry.name] = [entry.value, package]
    return groups


def _name(distribution: importlib.metadata.Distribution) -> str:
    """`distribution.metadata` would parse all of it, README included, which takes four fifths of a scan."""
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    line = re.search(r"^Name:(.*)$", text, re.MULTILINE)
    return line[1].strip() if line else ""


def _summary(entry: Entry) -> list[Any]:
    """[file, its time of change, summary]."""
    module = entry.value.partition(":")[0]
    try:
        summary = str(entry.load().summary)
    except Exception as error:  # somebody else's module: it may raise anything, and the list goes on
        return ["", 0, f"(cannot be loaded: {error})"]
    file = getattr(sys.modules[module], "__file__", None) or ""
    return [file, _modified(file), summary]
