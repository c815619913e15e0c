"""Planners by name: those that packages announce."""

from __future__ import annotations

from functools import cache

import msgspec

from ...runtime.matching import did_you_mean
from ...runtime.registry import PLANNERS, registry
from .errors import NoSuchPlanner, RunInvalid
from .planner import Planner


@cache
def planner_named(name: str) -> Planner:
    """Raises NoSuchPlanner. One instance for all runs: a planner keeps nothing."""
    known = registry().entries(PLANNERS)
    entry = known.get(name)
    if entry is None:
        guess = did_you_mean(name, known)
        hint = f"did you mean '{guess}'?" if guess else f"there are: {', '.join(known) or 'none'}"
        raise NoSuchPlanner(f"there is no planner named '{name}'", hint=hint)
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
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
