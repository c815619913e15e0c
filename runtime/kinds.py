"""Actor kinds by name: those that packages announce, and those of modules that a node was told to allow."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .errors import UnknownKind
from .extras import missing_extra
from .matching import did_you_mean
from .registry import ACTORS, Entry, registry

if TYPE_CHECKING:
    from .actor import Actor


def resolve_kind(kind: str, allow: Sequence[str] = ()) -> type[Actor[Any]]:
    """The class that `kind` names: an announced name, or `module:Class` of a module listed in `allow`.

    UnknownKind where there is none, MissingExtra where its module needs an extra that is not installed. The module is
    imported here, so a first call may take as long as its imports do.
    """
    if ":" in kind:
        return _allowed(kind, allow)
    kinds = registry().entries(ACTORS)
    entry = kinds.get(kind)
    if entry is None:
        guess = did_you_mean(kind, kinds)
        raise UnknownKind(
            f"there is no actor kind named '{kind}'",
            hint=f"did you mean '{guess}'?" if guess else "known kinds: " + (", ".join(kinds) or "none"),
        )
    return _load(entry)


def known_kinds() -> dict[str, Entry]:
    """Every announced kind by name; imports none."""
    return registry().entries(ACTORS)


def _allowed(kind: str, allow: Sequence[str]) -> type[Actor[Any]]:
    module = kind.partition(":")[0]
    if module not in allow:
        raise UnknownKind(
            f"this node may not load the module '{module}' that '{kind}' names",
            hint="start it with --load FILE for a file of actors, or announce the kind as an entry point "
            f"of the group {ACTORS}",
        )
    return _load(Entry(kind, kind, module))


def _load(entry: Entry) -> type[Actor[Any]]:
    from .actor import Actor

    try:
        found = entry.load()
    except ImportError as error:
        extra = missing_extra(error, f"the actor kind '{entry.name}'")
        if extra is not None:
            raise extra from error
        raise UnknownKind(f"the actor kind '{entry.name}' cannot be loaded: {error}") from error
    except AttributeError as error:
        module, _, name = entry.value.partition(":")
        guess = did_you_mean(name, vars(importlib.import_module(module)))
        raise UnknownKind(
            f"the module '{module}' has no '{name}'", hint=f"did you mean '{module}:{guess}'?" if guess else ""
        ) from error
    if not (isinstance(found, type) and issubclass(found, Actor)):
        raise UnknownKind(f"'{entry.value}' is no actor class")
    return found
