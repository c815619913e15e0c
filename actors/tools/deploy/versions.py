"""Whether a release fits what a package asks for: `>=3.11,<4` (PEP 440, of final releases only)."""

from __future__ import annotations

import re

from ....runtime.errors import ConfigError

_CLAUSE = re.compile(r"\s*(?P<op>~=|==|!=|<=|>=|<|>)\s*(?P<release>\d+(?:\.\d+)*)(?P<any>\.\*)?\s*")


def check_specifier(text: str) -> str:
    """`text` as it is. Raises ConfigError where it is no list of versions."""
    release_fits(text, (0, 0, 0))
    return text


def release_fits(text: str, version: tuple[int, int, int]) -> bool:
    """Whether every clause of `text` allows the version. An empty text allows all. Raises ConfigError."""
    fits = [_clause_fits(clause, text, version) for clause in text.split(",") if clause.strip()]  # all are checked
    return all(fits)


def release_of(text: str) -> tuple[int, int, int]:
    """The three numbers that a version begins with, zero for those that are not there."""
    major, minor, micro, *_ = (*map(int, re.findall(r"\d+", text)), 0, 0, 0)
    return major, minor, micro


def _clause_fits(clause: str, text: str, version: tuple[int, int, int]) -> bool:
    found = _CLAUSE.fullmatch(clause)
    release = tuple(map(int, found["release"].split("."))) if found else ()
    if found is None or len(release) > 3 or (found["any"] and found["op"] not in ("==", "!=")):
        raise ConfigError(f"'{text}' is no list of versions that is understood here", hint="write it as >=3.11,<4")
    if found["op"] == "~=" and len(release) < 2:
        raise ConfigError(f"'{text}': ~= takes two numbers at least", hint="write ~=3.11")
    wanted = (*release, 0, 0)[:3]
    starts_so = version[: len(release)] == release
    match found["op"]:
        case "==":
            return starts_so if found["any"] else version == wanted
        case "!=":
            return not (starts_so if found["any"] else version == wanted)
        case "~=":
            return version >= wanted and version[: len(release) - 1] == release[:-1]
        case ">=":
            return version >= wanted
        case "<=":
            return version <= wanted
        case ">":
            return version > wanted
        case _:
            return version < wanted
