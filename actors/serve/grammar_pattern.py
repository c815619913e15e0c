r"""Regular expressions, as far as xgrammar can be trusted with them, and those inside JSON strings.

A schema's `pattern` speaks of a string's characters, a grammar of the text that stands for them.

xgrammar matches a pattern against the latter. So a pattern must stay away from characters that JSON writes as escapes:
those that it may match by exclusion (`.`, `[^a]`, `\S`) are taken out, and one that names them is refused.
"""

from __future__ import annotations

import re

_PIECE = re.compile(r"\\.|\[\^?(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_ESCAPED = [chr(code) for code in range(32)] + ['"', "\\"]
_EXCLUDED = r'\x00-\x1f"\\'


def check_anchors(pattern: str) -> None:
    """ValueError where `^` or `$` stand inside: xgrammar would pass over them. A pattern is matched as a whole."""
    pieces = _PIECE.findall(pattern)
    for at, piece in enumerate(pieces):
        before, after = pieces[at - 1 : at], pieces[at + 1 : at + 2]
        if (piece == "^" and before not in ([], ["("], ["|"], [":"])) or (
            piece == "$" and after not in ([], [")"], ["|"])
        ):
            raise ValueError(f"'{piece}' stands inside the regular expression, where nothing can satisfy it")


def json_pattern(pattern: str) -> str:
    """The pattern of the same strings, as far as they need no escapes in JSON. ValueError if it names some that do."""
    check_anchors(pattern)
    return "".join(_rewritten(piece) for piece in _PIECE.findall(pattern))


def _rewritten(piece: str) -> str:
    if piece == ".":
        return f"[^{_EXCLUDED}]"
    if piece in (r"\S", r"\W", r"\D"):
        return f"[^{_EXCLUDED}{piece.lower()}]"
    if piece == r"\s":
        return " "
    if piece.startswith("[^"):
        return f"[^{_EXCLUDED}{piece[2:]}"
    if piece.startswith("["):
        piece = piece.replace(r"\s", " ")
    if piece[0] in '[\\"' and _may_be_escaped(piece):
        raise ValueError(f"the pattern's {piece} stands for characters that JSON writes as escapes")
    return piece


def _may_be_escaped(piece: str) -> bool:
    try:
        matcher = re.compile(piece)
    except re.error as error:
        raise ValueError(f"the pattern's {piece} is not understood: {error}") from None
    return any(matcher.fullmatch(character) for character in _ESCAPED)
