"""Text found in a picture, put in the order in which it is read."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

Point = tuple[float, float]


class TextLine(msgspec.Struct, frozen=True):
    """A piece of text and where it stands: the four corners in pixels, clockwise from the upper left as it is read.
    `confidence`: 0 to 1."""

    text: str
    confidence: float
    corners: tuple[Point, Point, Point, Point]

    @property
    def top(self) -> float:
        return min(y for _, y in self.corners)

    @property
    def bottom(self) -> float:
        return max(y for _, y in self.corners)

    @property
    def left(self) -> float:
        return min(x for x, _ in self.corners)


def rows(lines: Sequence[TextLine]) -> list[list[TextLine]]:
    """The lines from top to bottom, those beside each other in one row from left to right.

    Two stand beside each other where one's middle is within the height of the other. Columns of a page are not told
    from the cells of a table: their lines come out side by side.
    """
    found: list[list[TextLine]] = []
    for line in sorted(lines, key=lambda line: (line.top + line.bottom, line.left)):
        middle = (line.top + line.bottom) / 2
        if found and found[-1][0].top <= middle <= found[-1][0].bottom:
            found[-1].append(line)
        else:
            found.append([line])
    return [sorted(row, key=lambda line: line.left) for row in found]


def page_text(lines: Sequence[TextLine]) -> str:
    """A row of the picture is a line of the text, its pieces set apart by tabs."""
    return "\n".join("\t".join(line.text for line in row) for row in rows(lines))
