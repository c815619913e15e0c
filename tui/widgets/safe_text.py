"""Text of others on the screen: shown as it is, never interpreted.

Control sequences could drive the terminal, and bidirectional overrides could show an order that is not there, so both
become visible signs. Markup of Textual and Rich is not read in it.
"""

from __future__ import annotations

import re

from rich.text import Text

# C0 without tab and newline, DEL and C1; line and paragraph separators; what changes direction; what cannot be seen at
# all and is often used to hide text (tags); halves of surrogate pairs, which cannot be encoded.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\U000e0000-\U000e007f\ud800-\udfff]"
)
# Marks that combine with the character before: more than this many on one are a way to write over other lines.
MOST_MARKS = 8
_MARKS = re.compile(
    f"([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{{{MOST_MARKS}}})[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+"
)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)  # Unicode's control pictures
    if code == 0x7F:
        return "\u2421"
    return f"\u27e8U+{code:04X}\u27e9"


def safe(text: str) -> str:
    """The text with everything visible that would be interpreted. Newlines and tabs stay."""
    return _MARKS.sub(r"\1", _UNSAFE.sub(_visible, text.replace("\r\n", "\n")))


def plain(text: str, style: str = "") -> Text:
    """For any widget that takes a renderable: no markup, nothing interpreted."""
    return Text(safe(text), style=style)


def safe_line(text: str, limit: int = 0) -> str:
    """The same on one line, cut to `limit` characters where that is given."""
    if limit and len(text) > limit:
        text = text[: limit - 1] + "\u2026"
    return safe(text).replace("\n", "\u23ce").replace("\t", " ")


def plain_line(text: str, style: str = "", limit: int = 0) -> Text:
    """A safe line for cells of tables and titles."""
    return Text(safe_line(text, limit), style=style, no_wrap=True, end="")
