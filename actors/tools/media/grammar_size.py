"""How large a grammar in JSGF becomes when its rules are written out, found without writing them out.

PocketSphinx does write them out, in a call that nothing can interrupt, so what is too large must be known before.
"""

from __future__ import annotations

import itertools
import re

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_RULE = re.compile(r"(?:public\s+)?<([^<>]+)>\s*=(.*)", re.DOTALL)
_REFERENCE = re.compile(r"<([^<>]+)>")
# Deeper brackets than this are counted as too many words: reading them alone takes too long.
_MAX_NESTING = 20
_TOO_MANY = 1 << 62


def grammar_words(grammar: str) -> int:
    """An upper bound of the words in all the rules, each written out. A rule within itself counts once."""
    rules: dict[str, str] = {}
    for statement in _COMMENT.sub(" ", grammar).split(";"):
        if found := _RULE.fullmatch(statement.strip()):
            rules[found[1]] = rules.get(found[1], "") + " " + found[2]
    sizes: dict[str, int] = {}
    for name in rules:
        _measure(name, rules, sizes)
    return min(sum(sizes.values()), _TOO_MANY)


def _measure(start: str, rules: dict[str, str], sizes: dict[str, int]) -> None:
    """Fill in `sizes` for a rule and all that it uses, with a stack of its own: rules may be used a thousand deep."""
    waiting = [start]
    begun: set[str] = set()
    while waiting:
        name = waiting[-1]
        if name in sizes:
            waiting.pop()
            continue
        used = [other for other in _REFERENCE.findall(rules[name]) if other in rules]
        missing = [other for other in used if other not in sizes and other not in begun and other != name]
        if name not in begun and missing:
            begun.add(name)
            waiting.extend(missing)
            continue
        sizes[name] = _size(rules[name], sum(sizes.get(other, 1) for other in used))
        waiting.pop()


def _size(body: str, of_used: int) -> int:
    nesting = max(itertools.accumulate(1 if letter in "([" else -1 for letter in body if letter in "([)]"), default=0)
    if nesting > _MAX_NESTING:
        return _TOO_MANY
    words = len(re.findall(r"[^\s|()\[\]*+<>]+", _REFERENCE.sub(" ", body)))
    repeated = min(body.count("+"), nesting + 1)
    return min((words + of_used) << repeated, _TOO_MANY)
