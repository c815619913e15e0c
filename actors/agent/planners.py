"""Planners by name: those that packages announce."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import msgspec

from ...runtime.extras import missing_extra
from ...runtime.matching import did_you_mean
from ...runtime.registry import PLANNERS, Entry, registry
from .errors import NoSuchPlanner, RunInvalid
from .log import RunLog
from .planner import Decision, GiveUp, Planner


class Missing(Planner):
    """In the place of a planner that is no longer there."""

    def __init__(self, why: str) -> None:
        self._why = why

    def decide(self, log: RunLog) -> Decision:
        return GiveUp(self._why, code="agent.no_planner")


def planner_named(name: str, allow: Sequence[str] = ()) -> Planner:
    """One that a package announces, or `module:Class` of a module in `allow`. Raises NoSuchPlanner, MissingExtra."""
    if ":" in name and name.partition(":")[0] not in allow:
        module = name.partition(":")[0]
        hint = f"start the node with --load FILE, or announce it as an entry point of the group {PLANNERS}"
        raise NoSuchPlanner(f"this node may not load the module '{module}' that '{name}' names", hint=hint)
    return _planner(name)


@cache
def _planner(name: str) -> Planner:
    """One instance for all runs: a planner keeps nothing."""
    known = registry().entries(PLANNERS)
    entry = Entry(name, name, "") if ":" in name else known.get(name)
    if entry is None:
        guess = did_you_mean(name, known)
        hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(known) or 'none'}"
        raise NoSuchPlanner(f"there is no planner named '{name}'", hint=hint)
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        extra = missing_extra(error, f"the planner '{name}'") if isinstance(error, ImportError) else None
        if extra is not None:
            raise extra from error
        raise NoSuchPlanner(f"the planner '{name}' cannot be loaded: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Planner)):
        raise NoSuchPlanner(f"'{entry.value}' is no planner")
    return found()


def check_options(planner: Planner, options: str) -> None:
    """Raises RunInvalid where a run's options are not what its planner takes."""
    try:
        msgspec.json.decode(options, type=planner.options)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RunInvalid(f"the options do not fit the planner: {error}") from error
