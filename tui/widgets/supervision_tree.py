"""Who supervises whom, as a tree that changes in place: what is open stays open, the cursor stays with its actor."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from ..census import ActorRow, parents, short_rate
from ..styles import beside
from .safe_text import safe


class SupervisionTree(Tree[str]):
    """`show(rows)`: the data of a node is its actor's address, "" for the company."""

    HELP = """
## Who supervises whom

An actor stands below the one that restarts it. Enter describes it, space folds what is below. `r` restarts and `x`
stops the one under the cursor, with all below it; `t` is the table again.
"""
    DEFAULT_CSS = beside(__file__)

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__("company", data="", id=id)
        self._places: dict[str, TreeNode[str]] = {}
        self._parents: dict[str, str] = {}
        self._labels: dict[str, Text] = {}

    def on_mount(self) -> None:
        self.root.expand()

    @property
    def selected_key(self) -> str:
        """The address under the cursor, "" where it is on none."""
        node = self.cursor_node
        return node.data or "" if node is not None else ""

    def show(self, rows: Sequence[ActorRow]) -> None:
        """Nodes' own actors are left out: they supervise nobody."""
        shown = {row.info.address: row for row in rows if not row.info.address.startswith("node.")}
        above = parents([row.info for row in shown.values()])
        selected = self.selected_key
        for address in [address for address in self._places if above.get(address) != self._parents[address]]:
            self._remove(address)
        changed = False
        for address in sorted(shown):
            changed |= self._put(address, shown, above)
        for address, row in shown.items():
            label = _label(row)
            if label != self._labels.get(address):
                self._labels[address] = label
                self._places[address].set_label(label)
        if changed and selected and selected in self._places:
            self.move_cursor(self._places[selected])

    def _put(self, address: str, shown: dict[str, ActorRow], above: dict[str, str]) -> bool:
        """Have a node for this one, below one for its supervisor. Whether there was none."""
        if address in self._places:
            return False
        parent = above[address]
        if parent:
            self._put(parent, shown, above)
        place = self._places[parent] if parent else self.root
        later = [node for node in place.children if (node.data or "") > address]
        label = self._labels[address] = _label(shown[address])
        self._places[address] = place.add(
            label, data=address, expand=True, allow_expand=False, before=later[0] if later else None
        )
        self._parents[address] = parent
        place.allow_expand = True
        place.expand()
        return True

    def _remove(self, address: str) -> None:
        """With all below it; what is still there is put again."""
        node = self._places.pop(address, None)
        if node is None:
            return
        for child in list(node.children):
            self._remove(child.data or "")
        del self._parents[address]
        self._labels.pop(address, None)
        above = node.parent
        node.remove()
        if above is not None:
            above.allow_expand = bool(above.children)


def _label(row: ActorRow) -> Text:
    info = row.info
    parts = [(safe(info.address.rpartition(".")[2]), ""), (safe(info.kind), "dim")]
    if info.state != "running":
        parts.append((safe(info.state), "bold"))
    if "." not in info.address:
        parts.append((safe(f"@{info.node}"), "dim"))
    if info.restarts:
        parts.append((f"\u21bb{info.restarts}", ""))
    if info.mailbox:
        parts.append((f"{info.mailbox} waiting", ""))
    if row.rate:
        parts.append((f"{short_rate(row.rate)}/s", "dim"))
    text = Text(no_wrap=True, end="")
    for part, style in parts:
        if text:
            text.append("  ")
        text.append(part.replace("\n", "\u23ce"), style)
    return text
