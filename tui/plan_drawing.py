"""A plan as a drawing: steps from left to right, each behind all that it needs, with lines between them. Pure.

Layers are longest paths, and a line over several layers goes through invisible steps between them; within a layer,
steps lie near those that they need (Sugiyama's method, the barycenter heuristic).

    ✓ E1 search ─┬─ ● E3 compare ─── · E4 write
    ✓ E2 search ─╯
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.text import Text

# Of a character of lines: the sides that it leads to.
_UP, _RIGHT, _DOWN, _LEFT = 1, 2, 4, 8
_LINES = " ╵╶╰╷│╭├╴╯─┴╮┤┬┼"
_SWEEPS = 4


@dataclass(frozen=True)
class PlanNode:
    """`label` is drawn as it is, in `style`. `needs`: ids of others; what is not there is left out."""

    id: str
    label: str
    needs: tuple[str, ...] = ()
    style: str = ""


@dataclass
class _Place:
    """A step, or (`node` None) a line on its way through a layer."""

    node: PlanNode | None
    layer: int
    before: list[_Place] = field(default_factory=list)
    row: float = 0.0


def draw_plan(nodes: Sequence[PlanNode], line_style: str = "dim") -> list[Text]:
    """Lines of one width. Steps that need each other in a circle, which no plan that runs has, lie side by side."""
    if not nodes:
        return []
    layers = _layers(nodes)
    _order(layers)
    height = max(len(layer) for layer in layers)
    rows = [Text(no_wrap=True) for _ in range(height)]
    for number, layer in enumerate(layers):
        if number:
            _connect(rows, layer, height, line_style)
        width = max((cell_len(place.node.label) for place in layer if place.node), default=1)
        is_last = number == len(layers) - 1
        at = {int(place.row): place for place in layer}
        for row in range(height):
            _draw(rows[row], at.get(row), width, line_style, goes_on=not is_last and _goes_on(at.get(row), layers))
    return rows


def _goes_on(place: _Place | None, layers: Sequence[Sequence[_Place]]) -> bool:
    return place is not None and any(place in later.before for later in layers[place.layer + 1])


def _draw(row: Text, place: _Place | None, width: int, line_style: str, *, goes_on: bool) -> None:
    if place is None:
        row.append(" " * width)
    elif place.node is None:
        row.append("─" * width, line_style)
    else:
        row.append(place.node.label, place.node.style)
        rest = width - cell_len(place.node.label)
        if goes_on and rest:
            row.append(" " + "─" * (rest - 1), line_style)
        else:
            row.append(" " * rest)


def _connect(rows: list[Text], layer: Sequence[_Place], height: int, style: str) -> None:
    """The lines into a layer. Those of one source share a lane; those of others have one each."""
    sources = list({id(source): source for place in layer for source in place.before}.values())
    sources.sort(key=lambda source: source.row)
    bent = [s for s in sources if any(s in place.before and place.row != s.row for place in layer)]
    lanes = {id(source): 2 + lane for lane, source in enumerate(bent)}
    width = 4 + len(bent) - (1 if bent else 0)
    sides = [[0] * width for _ in range(height)]
    for source in sources:
        begin = int(source.row)
        for place in layer:
            if source in place.before:
                _line(sides, begin, int(place.row), lanes.get(id(source), 1), width)
    ends = {int(place.row) for place in layer if place.node is not None}
    starts = {int(source.row) for source in sources if source.node is not None}
    for row in range(height):
        text = "".join(_LINES[side] for side in sides[row])
        text = (" " + text[1:]) if row in starts else text
        rows[row].append((text[:-1] + " ") if row in ends else text, style)


def _line(sides: list[list[int]], begin: int, end: int, lane: int, width: int) -> None:
    if begin == end:
        for column in range(width):
            sides[begin][column] |= _LEFT | _RIGHT
        return
    for column in range(lane):
        sides[begin][column] |= _LEFT | _RIGHT
    down = end > begin
    sides[begin][lane] |= _LEFT | (_DOWN if down else _UP)
    for row in range(min(begin, end) + 1, max(begin, end)):
        sides[row][lane] |= _UP | _DOWN
    sides[end][lane] |= (_UP if down else _DOWN) | _RIGHT
    for column in range(lane + 1, width):
        sides[end][column] |= _LEFT | _RIGHT


def _layers(nodes: Sequence[PlanNode]) -> list[list[_Place]]:
    known = {node.id: node for node in nodes}
    depths: dict[str, int] = {}

    def depth(id: str, above: frozenset[str]) -> int:
        if id not in depths:
            needs = [one for one in known[id].needs if one in known and one not in above]
            depths[id] = max((depth(one, above | {id}) + 1 for one in needs), default=0)
        return depths[id]

    places = {node.id: _Place(node, depth(node.id, frozenset({node.id}))) for node in nodes}
    layers: list[list[_Place]] = [[] for _ in range(max(depths.values()) + 1)]
    for place in places.values():
        layers[place.layer].append(place)
    for place in places.values():
        assert place.node is not None
        for need in dict.fromkeys(place.node.needs):
            if need in places and places[need].layer < place.layer:
                _thread(places[need], place, layers)
    return layers


def _thread(source: _Place, target: _Place, layers: list[list[_Place]]) -> None:
    """A line from layer to layer; one that goes the same way already is gone along with."""
    for number in range(source.layer + 1, target.layer):
        known = next((one for one in layers[number] if one.node is None and one.before == [source]), None)
        if known is None:
            known = _Place(None, number, [source])
            layers[number].append(known)
        source = known
    target.before.append(source)


def _order(layers: Sequence[list[_Place]]) -> None:
    for layer in layers:
        _number(layer)
    after: Mapping[int, list[_Place]] = {
        id(place): [later for later in layers[place.layer + 1] if place in later.before]
        for layer in layers[:-1]
        for place in layer
    }
    for _ in range(_SWEEPS):
        for layer in layers[1:]:
            layer.sort(key=lambda place: _mean(place.before, place.row))
            _number(layer)
        for layer in reversed(layers[:-1]):
            layer.sort(key=lambda place: _mean(after[id(place)], place.row))
            _number(layer)


def _number(layer: Sequence[_Place]) -> None:
    for row, place in enumerate(layer):
        place.row = row


def _mean(places: Sequence[_Place], otherwise: float) -> float:
    return sum(place.row for place in places) / len(places) if places else otherwise
