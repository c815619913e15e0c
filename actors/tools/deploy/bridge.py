"""How callboard itself is importable in an environment that was made for tools: links to what is installed here.

The links are to this installation of callboard and to the packages that it needs, and to nothing else that is installed
beside them. So a tool's process runs the very release that its node runs, nothing is downloaded for it, and what a tool
did not ask for is not there by chance. A tool that lists `callboard[EXTRA]` among its requirements finds that extra's
packages linked too.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import EnvironmentFailed
from .versions import release_fits, release_of

_OURS = "callboard"
_REQUIREMENT = re.compile(
    r"\s*(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[(?P<extras>[^]]*)\])?(?P<rest>[^;]*)(?P<if>.*)"
)
_EXTRA = re.compile(r"extra\s*==\s*['\"](?P<name>[^'\"]+)['\"]")


@dataclass(frozen=True)
class Linked:
    """A package of this installation: its name, its version, and what lies of it in `site-packages`, by name."""

    name: str
    version: str
    places: dict[str, Path]


@dataclass(frozen=True)
class Wanted:
    """What a tool requires: what is linked from here, and the lines that are left to be installed."""

    linked: tuple[Linked, ...]
    lines: tuple[str, ...]

    @property
    def constraints(self) -> tuple[str, ...]:
        """Lines for pip: what callboard runs on may not be replaced by another version of it."""
        return tuple(f"{package.name}=={package.version}" for package in self.linked if package.name != _OURS)


def sort_out(requirements: Sequence[str]) -> Wanted:
    """Part a tool's requirements into what comes from here and what is to be installed.

    Raises EnvironmentFailed where they ask for another release of callboard, or for an extra that is not here.
    """
    extras: list[str] = []
    lines: list[str] = []
    for line in requirements:
        found = _REQUIREMENT.match(line)
        if found is None or line.startswith("./") or _normal(found["name"]) != _OURS:
            lines.append(line)
            continue
        version = importlib.metadata.version(_OURS)
        if not release_fits(found["rest"].strip(" ()"), release_of(version)):
            raise EnvironmentFailed(
                f"the tools require {line.strip()}, and this node has callboard {version}",
                hint="a tool's process runs the node's own release: update the node, or change the requirement",
            )
        extras += [extra.strip() for extra in (found["extras"] or "").split(",") if extra.strip()]
    return Wanted(tuple(_closure(extras)), tuple(lines))


def link(packages: Iterable[Linked], folder: Path) -> None:
    """Make the links. Blocking."""
    folder.mkdir()
    for package in packages:
        for name, place in package.places.items():
            if not (folder / name).is_symlink():  # two packages may share a namespace's folder
                os.symlink(place, folder / name)


def _closure(extras: Sequence[str]) -> list[Linked]:
    """Callboard with some of its extras, and all that they need, as far as it is installed."""
    todo: list[tuple[str, frozenset[str]]] = [(_OURS, frozenset(extras))]
    done: set[tuple[str, frozenset[str]]] = set()
    found: dict[str, Linked] = {}
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in done:
            continue
        done.add((name, wanted))
        distribution = _installed(name)
        found.setdefault(name, Linked(name, distribution.version, _places(name, distribution)))
        known = {_normal(extra) for extra in distribution.metadata.get_all("Provides-Extra") or ()}
        if unknown := {_normal(extra) for extra in wanted} - known:
            raise EnvironmentFailed(f"{name} has no extra '{min(unknown)}'", hint=f"it has: {', '.join(sorted(known))}")
        for line in distribution.requires or ():
            todo += _needed(name, line, wanted)
    return [found[name] for name in sorted(found)]


def _needed(by: str, line: str, wanted: frozenset[str]) -> list[tuple[str, frozenset[str]]]:
    found = _REQUIREMENT.match(line)
    assert found is not None, line  # it is what an installer wrote
    extra = _EXTRA.search(found["if"])
    if extra is not None and _normal(extra["name"]) not in {_normal(name) for name in wanted}:
        return []
    name = _normal(found["name"])
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        if extra is not None and by == _OURS and _EXTRA.fullmatch(found["if"].strip("; ")):
            raise EnvironmentFailed(
                f"the tools require callboard[{extra['name']}], and this node lacks its {name}",
                hint=f"on the node: pip install 'callboard[{extra['name']}]'",
            ) from None
        return []  # for another platform, or another Python
    return [(name, frozenset(part.strip() for part in (found["extras"] or "").split(",") if part.strip()))]


def _installed(name: str) -> importlib.metadata.Distribution:
    """As pip installed it. In a clone's own folder there may lie what a build left behind, which grows old."""
    all_of_it = list(importlib.metadata.distributions(name=name))
    if not all_of_it:
        raise importlib.metadata.PackageNotFoundError(name)
    return next((each for each in all_of_it if each.read_text("METADATA") is not None), all_of_it[0])


def _places(name: str, distribution: importlib.metadata.Distribution) -> dict[str, Path]:
    """What of a package lies directly in the folder that it is imported from."""
    files = distribution.files or ()
    if name == _OURS:  # it may be installed by a path only, where its list of files does not name its modules
        tops = {file.parts[0] for file in files if file.name in ("METADATA", "PKG-INFO") and len(file.parts) == 2}
        places = {_OURS: Path(sys.modules[__name__.partition(".")[0]].__path__[0])}
    else:
        tops = {file.parts[0] for file in files} - {"..", "__pycache__"}
        places = {}
    for top in tops:
        place = Path(str(distribution.locate_file(top))).absolute()
        if place.suffix != ".pth" and place.exists():
            places[top] = place
    if not tops or not places:
        raise EnvironmentFailed(f"the node's {name} does not say which files are its own", hint="install it anew")
    return places


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
