"""Whether bytes are text, and in which encoding."""

from __future__ import annotations

import codecs

_HEAD = 8192
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
# What a text file does not hold: control characters other than tab, newlines, form feed, escape, backspace.
_CONTROL = bytes(set(range(32)) - {8, 9, 10, 12, 13, 27})


def encoding_of(data: bytes) -> str | None:
    """The encoding of a text that begins with `data`, or None where these bytes are no text."""
    head = data[:_HEAD]
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    if head.translate(None, _CONTROL) != head:
        return None
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, final=len(data) <= _HEAD)
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"
