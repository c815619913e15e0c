"""Whether any finite text satisfies a grammar, read off the grammar as xgrammar prints it.

A rule is productive if one of its alternatives consists of productive parts only: the usual least fixed point. A
schema that refers to itself without a way out, or a rule that never ends, has none.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Iterator

_RULE = re.compile(r"^(\S+) ::= (.*)$")
_TOKEN = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\])"""
    r"""|(?P<name>[A-Za-z_][\w.-]*)"""
    r"""|(?P<repeat>\{\s*\d+\s*(?:,\s*-?\d*\s*)?\}|[*+?])"""
    r"""|(?P<open>\(=|\()|(?P<close>\))|(?P<bar>\|)|\s+"""
)
# Alternatives of sequences; a part is the name of a rule, or a group of alternatives. A text is a group of one that is
# empty: it needs no rule.
_Alternatives = list[list["str | _Alternatives"]]


def has_words(grammar: str) -> bool:
    """False if no finite text can satisfy the rule `root`; True also where the print holds what is not known here."""
    rules: dict[str, _Alternatives] = {}
    for line in grammar.splitlines():
        if not line.strip():
            continue
        match = _RULE.match(line)
        body = match and _parse(match[2])
        if match is None or body is None:
            return True
        rules[match[1]] = body
    users: dict[str, set[str]] = defaultdict(set)
    for name, body in rules.items():
        for used in _names(body):
            users[used].add(name)
    productive: set[str] = set()
    waiting = deque(rules)
    while waiting:
        name = waiting.popleft()
        if name not in productive and _is_productive(rules[name], productive):
            productive.add(name)
            waiting.extend(users[name])
    return "root" in productive


def _parse(body: str) -> _Alternatives | None:
    """None where there is something that is not known here."""
    stack: list[_Alternatives] = [[[]]]
    lookahead_depths: set[int] = set()
    at = 0
    while at < len(body):
        match = _TOKEN.match(body, at)
        if match is None:
            return None
        at = match.end()
        kind, token = match.lastgroup, match[0]
        if kind == "name":
            stack[-1][-1].append(token)
        elif kind == "text":
            stack[-1][-1].append([[]])
        elif kind == "bar":
            stack[-1].append([])
        elif kind == "open":
            stack.append([[]])
            if token == "(=":  # what must follow is no part of the text
                lookahead_depths.add(len(stack))
        elif kind == "close":
            if len(stack) == 1:
                return None
            is_lookahead = len(stack) in lookahead_depths
            lookahead_depths.discard(len(stack))
            group = stack.pop()
            if not is_lookahead:
                stack[-1][-1].append(group)
        elif kind == "repeat" and (token in "*?" or (token.startswith("{0") and not token[2].isdigit())):
            if not stack[-1][-1]:
                return None
            stack[-1][-1].pop()  # it may be left out altogether
    return stack[0] if len(stack) == 1 else None


def _names(body: _Alternatives) -> Iterator[str]:
    for sequence in body:
        for part in sequence:
            if isinstance(part, str):
                yield part
            else:
                yield from _names(part)


def _is_productive(body: _Alternatives, productive: set[str]) -> bool:
    return any(
        all(part in productive if isinstance(part, str) else _is_productive(part, productive) for part in sequence)
        for sequence in body
    )
