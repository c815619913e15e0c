"""What a company file asks for against what runs: which changes lead from the one to the other. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..schemas.company import Action, CompanyStep
from .company_file import ActorWish


@dataclass(frozen=True, slots=True)
class Now:
    """One actor as it is. `wish` is what the file said when it was started from it, None if somebody else asked for
    it. `ended` says that it did its work and is gone, as its restart rule allows."""

    wish: ActorWish | None
    ended: bool = False


def plan(wished: Sequence[ActorWish], now: Mapping[str, Now]) -> list[CompanyStep]:
    """The steps in the order in which to take them: stops first, the last started first, then the file's own order.

    `now` holds what runs or has ended, in the order of its start. What nobody wrote in a file is left alone, unless
    the file now claims its name.
    """
    listed = {wish.name for wish in wished}
    stops = [
        CompanyStep(Action.STOP, name, "no longer listed")
        for name, actor in now.items()
        if actor.wish is not None and not actor.ended and name not in listed
    ]
    return [*reversed(stops), *(_step(wish, now.get(wish.name)) for wish in wished)]


def _step(wish: ActorWish, now: Now | None) -> CompanyStep:
    if now is None:
        return CompanyStep(Action.START, wish.name, "not running")
    if now.wish is None:
        return CompanyStep(Action.RESTART, wish.name, "it was not started from the file")
    why = difference(now.wish, wish)
    if now.ended:
        return CompanyStep(Action.START, wish.name, why) if why else CompanyStep(Action.KEEP, wish.name, "has ended")
    if msgspec.structs.replace(now.wish, restart=wish.restart) != wish:
        return CompanyStep(Action.RESTART, wish.name, why)
    return CompanyStep(Action.ADJUST if why else Action.KEEP, wish.name, why)


def difference(old: ActorWish, new: ActorWish) -> str:
    """In words, empty where there is none."""
    parts = [_changed(key, getattr(old, key), getattr(new, key)) for key in ("kind", "restart")]
    keys = dict.fromkeys([*old.config, *new.config])
    parts += [_changed(f"config.{key}", old.config.get(key), new.config.get(key)) for key in keys]
    was, becomes = (msgspec.to_builtins(wish.where) for wish in (old, new))
    parts.append(_changed("where", was["type"], becomes["type"]))
    if was["type"] == becomes["type"]:
        parts += [_changed(f"where.{key}", was[key], becomes[key]) for key in was]
    return ", ".join(part for part in parts if part)


def _changed(key: str, old: Any, new: Any) -> str:
    if old == new:
        return ""
    return f"{key}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= 40 else text[:37] + "..."
