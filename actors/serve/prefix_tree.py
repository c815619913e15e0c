"""Which blocks hold the keys and values of which tokens: a radix tree over whole blocks.

    (adapter a)
      |-- [t0 .. t15] block 7
      |     |-- [t16 .. t31] block 3
      |     `-- [u16 .. u31] block 9        two conversations that begin alike
      `-- [v0 .. v15] block 4

What a key and value are depends on all tokens before them, so a node stands for the whole way from its root, and each
root for a namespace: whatever else changes keys and values (an adapter, another arithmetic). Tokens themselves are
compared, so there are no collisions. After SGLang's radix attention (Zheng et al., 2024), with vLLM's blocks.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from collections.abc import Sequence as SequenceOf

from .blocks import BlockPool, OutOfBlocks


class Node:
    """One block whose keys and values are computed. `block` is -1 for a root, and for a node that was evicted."""

    __slots__ = ("block", "children", "last_used", "parent", "pins", "tokens")

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], block: int) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.children: dict[tuple[int, ...], Node] = {}
        self.pins = 0
        self.last_used = 0


class PrefixTree:
    """The nodes over a pool, and the pool's door: blocks are taken and given back here.

    Who holds a node's block holds those of its ancestors, so idle blocks always form whole subtrees and each of them
    can be had: evicted the least recently used first, leaves before their parents. Pinned ones go last: when nothing
    else is left, `relieve` is called to let go of a pin, until it says that there is none.
    """

    def __init__(self, pool: BlockPool, block_size: int, relieve: Callable[[], bool] = lambda: False) -> None:
        self.pool = pool
        self.block_size = block_size
        self.num_evictions = 0
        self.num_pinned = 0
        self._relieve = relieve
        self._roots: dict[Hashable, Node] = {}
        self._nodes: dict[int, Node] = {}  # by block
        # Leaves that may be evicted: (last used, tie, node). What changed since then is thrown out when met.
        self._leaves: list[tuple[int, int, Node]] = []
        self._ticks = itertools.count(1)
        self._ties = itertools.count()

    @property
    def num_nodes(self) -> int:
        return len(self._nodes)

    def root(self, namespace: Hashable) -> Node:
        node = self._roots.get(namespace)
        if node is None:
            node = self._roots[namespace] = Node(None, (), -1)
        return node

    def match(self, namespace: Hashable, token_ids: SequenceOf[int], limit: int) -> Node:
        """The node at the end of the longest known prefix of `token_ids`, of at most `limit` tokens."""
        node, size = self.root(namespace), self.block_size
        for end in range(size, limit + 1, size):
            child = node.children.get(tuple(token_ids[end - size : end]))
            if child is None:
                break
            node = child
        return node

    def blocks(self, node: Node) -> list[int]:
        """The blocks on the way from the root to `node`."""
        path = [step.block for step in _upward(node)]
        return path[::-1]

    def take(self, blocks: Iterable[int]) -> None:
        """Hold the blocks of a way from the root."""
        for block in blocks:
            self.pool.share(block)

    def allocate(self, num_blocks: int) -> list[int]:
        """Blank blocks, evicting what is least recently used. OutOfBlocks, without evicting, if too few are free."""
        if num_blocks > self.pool.num_free:
            raise OutOfBlocks(f"{num_blocks} blocks wanted, {self.pool.num_free} free")
        while self.pool.num_blank < num_blocks:
            self._evict_one()
        return self.pool.allocate(num_blocks)

    def release(self, blocks: Iterable[int]) -> None:
        """Give blocks back. Those in the tree stay there, idle, as used just now."""
        idle = self.pool.release(blocks)
        if idle:
            tick = next(self._ticks)
            for block in idle:
                self._nodes[block].last_used = tick
            for block in idle:
                self._offer(self._nodes[block])

    def insert(self, parent: Node, tokens: tuple[int, ...], block: int) -> tuple[Node, bool]:
        """Make a held block known as what follows `parent`. Returns its node, and whether another block has that place.

        If that other one is held, the caller now holds it too, beside its own: so whatever it inserts below is never
        without its ancestors. If it is idle, it makes room.
        """
        node = parent.children.get(tokens)
        if node is None:
            node = parent.children[tokens] = Node(parent, tokens, block)
            self.pool.keep(block)
            self._nodes[block] = node
            return node, False
        if node.block == block:
            return node, False
        if self.pool.is_held(node.block):
            self.pool.share(node.block)
            return node, True
        del self._nodes[node.block]
        self.pool.discard(node.block)
        self.pool.keep(block)
        self._nodes[block] = node
        node.block = block
        return node, False

    def pin(self, node: Node) -> None:
        """Evict this and its ancestors only when nothing else is left."""
        for step in _upward(node):
            step.pins += 1
            self.num_pinned += step.pins == 1

    def unpin(self, node: Node) -> None:
        for step in _upward(node):
            step.pins -= 1
            if not step.pins:
                self.num_pinned -= 1
                self._offer(step)

    def flush(self) -> None:
        """The cache is lost: nothing is known any more. Whoever held blocks has given them back, pins are void."""
        for block, node in self._nodes.items():
            self.pool.discard(block)
            node.block = -1
            node.pins = 0
        self._nodes.clear()
        self._roots.clear()
        self._leaves.clear()
        self.num_pinned = 0

    def check_integrity(self, holders: Iterable[Iterable[int]] = ()) -> None:
        """Hold pool and tree against each other and against `holders`. RuntimeError if anything does not fit."""
        self.pool.check_integrity(holders, self._nodes)
        reached = [node for root in self._roots.values() for node in _below(root)]
        if {node.block: node for node in reached} != self._nodes or len(reached) != len(self._nodes):
            raise RuntimeError("the nodes of the prefix tree are not those of its blocks")
        offered = {id(node) for last_used, _, node in self._leaves if last_used == node.last_used}
        for node in reached:
            held = self.pool.is_held(node.block)
            parent = node.parent
            if parent is not None and parent.parent is not None:
                if held and not self.pool.is_held(parent.block):
                    raise RuntimeError(f"block {node.block} is held without the one before it")
                if node.pins > parent.pins:
                    raise RuntimeError(f"block {node.block} is pinned more often than the one before it")
            if not (held or node.children or node.pins or id(node) in offered):
                raise RuntimeError(f"block {node.block} is idle and would never be evicted")
        if self.num_pinned != sum(node.pins > 0 for node in reached):
            raise RuntimeError(f"{self.num_pinned} blocks are counted as pinned")

    def _evict_one(self) -> None:
        while True:
            while self._leaves:
                last_used, _, node = heapq.heappop(self._leaves)
                if node.last_used == last_used and self._is_evictable(node):
                    return self._evict(node)
            if not self._relieve():
                raise RuntimeError("blocks are idle and yet none can be evicted")

    def _evict(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        del self._nodes[node.block]
        self.pool.discard(node.block)
        node.block = -1
        self.num_evictions += 1
        self._offer(parent)

    def _offer(self, node: Node) -> None:
        if self._is_evictable(node):
            heapq.heappush(self._leaves, (node.last_used, next(self._ties), node))
            if len(self._leaves) > 2 * self.pool.num_blocks + 64:
                current = {id(n): (used, tie, n) for used, tie, n in self._leaves if n.last_used == used}
                self._leaves = [entry for entry in current.values() if self._is_evictable(entry[2])]
                heapq.heapify(self._leaves)

    def _is_evictable(self, node: Node) -> bool:
        return node.block >= 0 and not node.children and not node.pins and not self.pool.is_held(node.block)


def _upward(node: Node) -> Iterator[Node]:
    """The node and its ancestors without the root."""
    while node.parent is not None:
        yield node
        node = node.parent


def _below(root: Node) -> Iterator[Node]:
    waiting = [*root.children.values()]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += node.children.values()
