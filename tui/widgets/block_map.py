"""The blocks of a cache as a map: which are blank, kept, held, shared. One character for so many blocks in a row."""

from __future__ import annotations

from typing import ClassVar

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from ..styles import beside

# By what the highest of a character's blocks is: blank, kept, held, shared by two, three, four and more. Signs differ
# too, so that the map can be read without colours.
SIGNS = ("\u00b7", "\u2591", "\u2592", "\u2593", "\u2593", "\u2588")
_PARTS = tuple(f"map--{name}" for name in ("blank", "kept", "held", "shared", "shared3", "many"))


class BlockMap(Widget):
    """`show(address, cells, blocks_per_cell)`: of the replica of that address, as `LaneStats` has them."""

    DEFAULT_CSS = beside(__file__)
    COMPONENT_CLASSES: ClassVar[set[str]] = set(_PARTS)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._cells = b""
        self._per_cell = 1

    def show(self, address: str, cells: bytes, blocks_per_cell: int = 1) -> None:
        if (cells, blocks_per_cell) != (self._cells, self._per_cell):
            self._cells, self._per_cell = cells, blocks_per_cell
            self.border_title = f"{address}  {self._legend()}"
            self.refresh()

    def render(self) -> Text:
        width, height = self.size
        if not self._cells or width < 1 or height < 1:
            return Text("")
        levels, _ = shrunk(self._cells, width * height)
        # Not the partial ones, in which a colour that goes by what lies below (`$text-disabled`) is white.
        styles = [self.get_component_rich_style(part) for part in _PARTS]
        text = Text(no_wrap=True, end="")
        for start in range(0, len(levels), width):
            for level, count in _runs(levels[start : start + width]):
                text.append(SIGNS[level] * count, styles[level] if level else Style.combine([styles[0]]))
            if start + width < len(levels):
                text.append("\n")
        return text

    def _legend(self) -> str:
        counts = [0] * len(SIGNS)
        for cell in self._cells:
            counts[_level(cell)] += 1
        parts = [
            f"{SIGNS[level]} {count * self._per_cell} {name}"
            for level, name, count in (
                (3, "shared", sum(counts[3:])),
                (2, "held", counts[2]),
                (1, "kept", counts[1]),
                (0, "blank", counts[0]),
            )
            if count
        ]
        return "  ".join(parts)


def _level(cell: int) -> int:
    return min(cell, len(SIGNS) - 1)


def shrunk(cells: bytes, room: int) -> tuple[list[int], int]:
    """The levels of as many characters as there is room for, each the highest of so many cells."""
    each = max(1, -(-len(cells) // max(1, room)))
    return [_level(max(cells[start : start + each])) for start in range(0, len(cells), each)], each


def _runs(levels: list[int]) -> list[tuple[int, int]]:
    """(level, how many in a row)."""
    found: list[tuple[int, int]] = []
    for level in levels:
        if found and found[-1][0] == level:
            found[-1] = (level, found[-1][1] + 1)
        else:
            found.append((level, 1))
    return found
