"""A long text as pieces that are drawn by a widget each, so that those far from view can be left out.

A piece ends at an empty line outside a fence where there is one; a fence that is too long itself is closed at the end
of a piece and opened again in the next, so that each piece is Markdown by itself.
"""

from __future__ import annotations

# Beyond this a piece ends at the next place that is fit; beyond the second, at any line; a line beyond that is cut.
PIECE = 3_000
LONGEST_PIECE = 6_000


class Pieces:
    """Takes a text as it grows: `feed` gives (number of the piece, what to append to it)."""

    def __init__(self) -> None:
        self.number = 0
        self.texts: list[str] = [""]
        self._fence = ""  # the mark that opened the fence we are in, with its language
        self._line = ""

    def feed(self, text: str) -> list[tuple[int, str]]:
        """What to append, by piece; the numbers go up by one at most."""
        out: list[tuple[int, str]] = []
        for line in text.splitlines(keepends=True):
            while len(self.texts[-1]) + len(line) > 2 * LONGEST_PIECE:
                room = max(1, 2 * LONGEST_PIECE - len(self.texts[-1]))
                self._append(out, line[:room])
                self._cut(out)
                line = line[room:]
            if line:
                self._append(out, line)
                self._after_line(out, line)
        return out

    def _append(self, out: list[tuple[int, str]], text: str) -> None:
        self.texts[-1] += text
        if out and out[-1][0] == self.number:
            out[-1] = (self.number, out[-1][1] + text)
        else:
            out.append((self.number, text))

    def _after_line(self, out: list[tuple[int, str]], part: str) -> None:
        self._line += part
        if not part.endswith("\n"):
            return
        line, self._line = self._line, ""
        stripped = line.strip()
        mark = (
            stripped[: len(stripped) - len(stripped.lstrip("`"))]
            or stripped[: len(stripped) - len(stripped.lstrip("~"))]
        )
        if len(mark) >= 3:
            if not self._fence:
                self._fence = stripped
            elif stripped == mark and mark.startswith(self._fence[:3]):
                self._fence = ""
        size = len(self.texts[-1])
        if size > LONGEST_PIECE or (size > PIECE and not stripped and not self._fence):
            self._cut(out)

    def _cut(self, out: list[tuple[int, str]]) -> None:
        if self._fence:
            mark = self._fence[: len(self._fence) - len(self._fence.lstrip(self._fence[0]))]
            ending = "" if self.texts[-1].endswith("\n") else "\n"
            self._append(out, f"{ending}{mark}\n")
        self.number += 1
        self.texts.append("")
        if self._fence:
            self._append(out, f"{self._fence}\n")


def pieces_of(text: str) -> list[str]:
    """The pieces of a whole text."""
    pieces = Pieces()
    pieces.feed(text)
    return [piece for piece in pieces.texts if piece] or [""]
