"""Which tools a request means: by name and version, and by relevance to a query.

The ranking is BM25 (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009) over a tool's name, its
description and its arguments' names and descriptions, with what stands in the name counting more.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from ...runtime.matching import did_you_mean
from ...schemas.tool import ListTools, ToolInfo, ToolList
from .errors import NoSuchTool

K1 = 1.2
B = 0.75
# A word of the name stands for so many in the description, a tag for so many.
NAME_WEIGHT = 4
TAG_WEIGHT = 3

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_COMMON = """
a an and are as at be by for from has have how i in is it its me my of on or that the this to use what when where which
who will with you your
"""
_STOP = frozenset(_COMMON.split())
# Endings, and how much must be left of a word without them.
_ENDINGS = (("ations", 4), ("ation", 4), ("ings", 4), ("ing", 4), ("ies", 3), ("ed", 4), ("es", 4), ("s", 3))


def words(text: str) -> list[str]:
    """Lower-case words, without the most common ones, with the endings of English cut off."""
    return [_stem(word) for word in _WORD.findall(_HUMP.sub(" ", text).lower()) if word not in _STOP]


def _stem(word: str) -> str:
    """Plural and verb forms come together ("searches", "searching", "search"); rough, and the same on both sides."""
    for ending, least in (
        ("ations", 4),
        ("ation", 4),
        ("ings", 4),
        ("ing", 4),
        ("ies", 3),
        ("ed", 4),
        ("es", 4),
        ("s", 3),
    ):
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word.removesuffix(ending) + ("y" if ending == "ies" else "")
            break
    return word.removesuffix("e") if len(word) > 4 else word


class Ranking:
    """An index over tools, made once for a list of them."""

    def __init__(self, tools: Iterable[ToolInfo]) -> None:
        self.tools = tuple(tools)
        documents = [collections.Counter(_document(info)) for info in self.tools]
        lengths = [counts.total() for counts in documents]
        average = sum(lengths) / len(lengths) if lengths else 1.0
        self._scores: dict[str, list[tuple[int, float]]] = collections.defaultdict(list)
        holders = collections.Counter(word for counts in documents for word in counts)
        for number, counts in enumerate(documents):
            norm = K1 * (1 - B + B * lengths[number] / max(average, 1e-9))
            for word, count in counts.items():
                rarity = math.log(1 + (len(documents) - holders[word] + 0.5) / (holders[word] + 0.5))
                self._scores[word].append((number, rarity * count * (K1 + 1) / (count + norm)))

    def ranked(self, query: str) -> list[ToolInfo]:
        """Those that share a word with the query, the most relevant first; among equals by name."""
        totals: dict[int, float] = collections.defaultdict(float)
        for word in dict.fromkeys(words(query)):
            for number, score in self._scores.get(word, ()):
                totals[number] += score
        order = sorted(totals, key=lambda number: (-totals[number], self.tools[number].name))
        return [self.tools[number] for number in order]


def _document(info: ToolInfo) -> list[str]:
    found = words(info.name) * NAME_WEIGHT + words(" ".join(info.tags)) * TAG_WEIGHT
    found += words(info.annotations.title) + words(info.description)
    schema: Any = msgspec.json.decode(info.input_schema or "{}")
    for name, part in schema.get("properties", {}).items():
        found += words(name) + words(str(part.get("description", "")) if isinstance(part, dict) else "")
    return found


def matches(info: ToolInfo, pattern: str) -> bool:
    """Whether a name means a tool: as it is, `files.*`, `files.read@2`."""
    wanted, version = parse_name(pattern)
    if version and info.version != version:
        return False
    return info.name.startswith(wanted[:-1]) if wanted.endswith("*") else info.name == wanted


def parse_name(name: str) -> tuple[str, str]:
    """`name@version` in its two parts; the version is "" where any will do."""
    wanted, _, version = name.partition("@")
    return wanted, version


def chosen(tools: Sequence[ToolInfo], message: ListTools, ranking: Ranking | None = None) -> ToolList:
    """The answer to a request for a list. `ranking` is one over the same tools, where there is one already."""
    found = list(tools)
    if message.query:
        found = (ranking or Ranking(tools)).ranked(message.query)
    if message.names:
        found = [info for info in found if any(matches(info, name) for name in message.names)]
    return ToolList(tuple(found[: message.limit] if message.limit > 0 else found), len(found))


def newest(tools: Iterable[ToolInfo], name: str) -> ToolInfo:
    """The tool that a name means, the newest where it names no version. Raises NoSuchTool, which says what is near."""
    listed = list(tools)
    found = [info for info in listed if matches(info, name) and not name.endswith("*")]
    if found:
        return max(found, key=lambda info: (version_key(info.version), bool(info.address), info.address))
    wanted, version = parse_name(name)
    versions = sorted({info.version for info in listed if info.name == wanted}, key=version_key)
    if version and versions:
        raise NoSuchTool(f"there is no version {version} of the tool {wanted}", hint=f"there is {', '.join(versions)}")
    guess = did_you_mean(wanted, {info.name for info in listed})
    raise NoSuchTool(f"nobody offers a tool '{wanted}'", hint=f"did you mean '{guess}'?" if guess else "")


def version_key(version: str) -> tuple[tuple[bool, int, str], ...]:
    """Orders versions as people read them: 2 before 10, 1.2 before 1.10; none before any."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
