"""Who is computing which prefix right now: whoever needs the same one waits for it rather than compute it again.

A running sequence announces the next whole block of tokens that it is going to compute. A waiting one whose known
prefix ends where that block begins, and which goes on with the same tokens, has found its leader; as the leader gets
on, both find the longer prefix in the tree.
"""

from __future__ import annotations

from collections.abc import Iterable

from .prefix_tree import Node, PrefixTree
from .sequence import Sequence


class Leaders:
    """Over one prefix tree. Keeps `leads` and `waits_for` of sequences."""

    def __init__(self, tree: PrefixTree) -> None:
        self._tree = tree
        self._by_block: dict[tuple[Node, tuple[int, ...]], Sequence] = {}

    def announce(self, sequence: Sequence) -> None:
        """Say what block a running sequence computes next, if it has the tokens for a whole one."""
        size = self._tree.block_size
        start = sequence.num_known * size
        if start + size > len(sequence.token_ids) or sequence.node is None:
            return
        key = (sequence.node, tuple(sequence.token_ids[start : start + size]))
        if key not in self._by_block:
            self._by_block[key] = sequence
            sequence.leads = key

    def withdraw(self, sequence: Sequence) -> None:
        if sequence.leads is not None:
            del self._by_block[sequence.leads]
            sequence.leads = None

    def match(self, sequence: Sequence) -> Node | None:
        """The node of a waiting sequence's longest known prefix. None while it should rather wait for a longer one."""
        if sequence.waits_for is not None:
            leader, there = sequence.waits_for
            if leader.leads is not None and leader.node is there:
                return None
            sequence.waits_for = None
        size = self._tree.block_size
        limit = sequence.reusable_tokens()
        node = self._tree.match(sequence.namespace, sequence.token_ids, limit)
        start = len(self._tree.blocks(node)) * size
        if self._by_block and start + size <= limit:
            leader = self._by_block.get((node, tuple(sequence.token_ids[start : start + size])))
            if leader is not None and self._is_worth_waiting(sequence, leader, start, limit):
                sequence.waits_for = (leader, node)
                return None
        return node

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """RuntimeError if somebody could wait for a prefix that nobody computes."""
        if self._by_block.keys() != {sequence.leads for sequence in running if sequence.leads is not None}:
            raise RuntimeError("a prefix is announced that nobody computes")

    def _is_worth_waiting(self, sequence: Sequence, leader: Sequence, start: int, limit: int) -> bool:
        """Whether what the two share is at least a quarter of what has to be computed otherwise."""
        size, end = self._tree.block_size, start
        while end + size <= limit and sequence.token_ids[end : end + size] == leader.token_ids[end : end + size]:
            end += size
        return 4 * (end - start) >= len(sequence.token_ids) - start
