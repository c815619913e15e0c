"""The prefix tree against a plain model: a set of prefixes, and who holds which block."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.actors.serve.blocks import BlockPool, OutOfBlocks
from callboard.actors.serve.prefix_tree import Node, PrefixTree
from callboard.actors.serve.sessions import Sessions

SIZE = 2
NUM_BLOCKS = 9

texts = st.lists(st.integers(0, 1), min_size=1, max_size=4 * SIZE)


class Holder:
    """A sequence: its tokens, its blocks, and how much of them is in the tree."""

    def __init__(self, tokens: list[int], blocks: list[int], node: Node, num_known: int) -> None:
        self.tokens = tokens
        self.blocks = blocks
        self.anchors: list[int] = []
        self.node = node
        self.num_known = num_known


class TreeMachine(RuleBasedStateMachine):
    """Sequences start from what is known, make their blocks known, and end; sessions pin.

    `contents` is what was written into each block: the tokens up to its end. What the tree finds must be that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.tree = PrefixTree(self.pool, SIZE, lambda: self.sessions.let_go_oldest())
        self.sessions = Sessions(self.tree, 3, 100.0)
        self.holders: list[Holder] = []
        self.contents: dict[int, tuple[str | int, ...]] = {}
        self.now = 0.0

    @rule(tokens=texts, namespace=st.sampled_from("ab"))
    def start(self, tokens: list[int], namespace: str) -> None:
        node = self.tree.match(namespace, tokens, len(tokens) - 1)
        known = self.tree.blocks(node)
        assert len(known) * SIZE < len(tokens)
        for index, block in enumerate(known):
            assert self.contents[block] == (namespace, *tokens[: (index + 1) * SIZE])
        missing = -(-len(tokens) // SIZE) - len(known)
        if missing + sum(not self.pool.is_held(block) for block in known) > self.pool.num_free:
            self.tree.take(known)
            with pytest.raises(OutOfBlocks):
                self.tree.allocate(missing)
            self.tree.release(known)
            return
        self.tree.take(known)
        blocks = known + self.tree.allocate(missing)
        for index in range(len(known), len(blocks)):
            self.contents[blocks[index]] = (namespace, *tokens[: (index + 1) * SIZE])
        assert len(set(blocks)) == len(blocks)
        self.holders.append(Holder(tokens, blocks, node, len(known)))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def make_known(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from(self.holders))
        while (holder.num_known + 1) * SIZE <= len(holder.tokens):
            start = holder.num_known * SIZE
            tokens = tuple(holder.tokens[start : start + SIZE])
            node, is_anchor = self.tree.insert(holder.node, tokens, holder.blocks[holder.num_known])
            if is_anchor:
                holder.anchors.append(node.block)
            holder.node = node
            holder.num_known += 1

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), name=st.sampled_from(["", "x", "y", "z", "w"]))
    def end(self, data: st.DataObject, name: str) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.tree.release(holder.blocks + holder.anchors)
        if name:
            self.now += 1
            self.sessions.keep(name, holder.node, self.now)
            assert name in self.sessions

    @rule(seconds=st.integers(0, 120))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds
        self.sessions.expire(self.now)

    @precondition(lambda self: not self.holders)
    @rule()
    def flush(self) -> None:
        self.tree.flush()
        self.sessions.flush()
        assert self.pool.num_blank == NUM_BLOCKS
        assert not self.tree.num_nodes

    @invariant()
    def books_are_right(self) -> None:
        self.tree.check_integrity(holder.blocks + holder.anchors for holder in self.holders)
        assert len(self.sessions) <= 3
        if not len(self.sessions):
            assert not self.tree.num_pinned
        assert self.pool.num_free == self.pool.num_blank + self.pool.num_idle


TestTree = TreeMachine.TestCase


def known(tree: PrefixTree, *tokens: int) -> int:
    """Tokens of these that are known."""
    return SIZE * len(tree.blocks(tree.match("", tokens, len(tokens))))


def add(tree: PrefixTree, *tokens: int) -> Node:
    """Compute these, and give the blocks back."""
    node = tree.match("", tokens, len(tokens))
    blocks = tree.blocks(node)
    tree.take(blocks)
    for start in range(len(blocks) * SIZE, len(tokens) - SIZE + 1, SIZE):
        blocks += tree.allocate(1)
        node, _ = tree.insert(node, tokens[start : start + SIZE], blocks[-1])
    tree.release(blocks)
    return node


def test_what_is_longest_unused_is_evicted_first_and_leaves_before_their_parents() -> None:
    tree = PrefixTree(BlockPool(6), SIZE)
    add(tree, 1, 1, 2, 2, 3, 3)
    add(tree, 1, 1, 4, 4)
    add(tree, 5, 5)
    add(tree, 1, 1, 2, 2)  # used again, without its end
    order = [((1, 1, 2, 2, 3, 3), 4), ((1, 1, 4, 4), 2), ((5, 5), 0), ((1, 1, 2, 2), 2), ((1, 1), 0)]
    held = tree.allocate(1)
    for tokens, left in order:
        held += tree.allocate(1)
        assert known(tree, *tokens) == left
    assert tree.num_evictions == 5
    with pytest.raises(OutOfBlocks):
        tree.allocate(1)


def test_what_is_pinned_goes_last_and_then_the_oldest_pin_first() -> None:
    tree = PrefixTree(BlockPool(4), SIZE, lambda: sessions.let_go_oldest())
    sessions = Sessions(tree, 10, 100.0)
    sessions.keep("first", add(tree, 1, 1), 0.0)
    sessions.keep("second", add(tree, 2, 2), 1.0)
    add(tree, 3, 3)
    tree.allocate(2)
    assert (known(tree, 1, 1), known(tree, 2, 2), known(tree, 3, 3)) == (2, 2, 0)
    tree.allocate(1)
    assert (known(tree, 1, 1), known(tree, 2, 2)) == (0, 2)
    assert [name in sessions for name in ("first", "second")] == [False, True]


def test_two_that_computed_the_same_at_once_both_go_on_from_it() -> None:
    tree = PrefixTree(BlockPool(6), SIZE)
    mine, others = tree.allocate(2), tree.allocate(2)
    root = tree.root("")
    node, is_anchor = tree.insert(root, (1, 1), mine[0])
    assert not is_anchor
    there, is_anchor = tree.insert(root, (1, 1), others[0])
    assert (there, is_anchor) == (node, True)
    tree.insert(there, (2, 2), others[1])
    tree.release(mine)
    tree.check_integrity([[*others, mine[0]]])
    assert known(tree, 1, 1, 2, 2) == 4
    tree.release([*others, mine[0]])
    # The place of one that nobody holds is taken over.
    again = tree.allocate(1)
    node, is_anchor = tree.insert(root, (1, 1), again[0])
    assert (node.block, is_anchor) == (again[0], False)
    tree.check_integrity([again])


def test_many_uses_without_an_eviction_do_not_pile_up() -> None:
    tree = PrefixTree(BlockPool(4), SIZE)
    for _ in range(1000):
        add(tree, 1, 1, 2, 2)
    assert len(tree._leaves) < 100
    tree.check_integrity()


def test_what_cannot_be_right_stops_everything() -> None:
    tree = PrefixTree(BlockPool(4), SIZE)
    node = add(tree, 1, 1, 2, 2)
    tree.pool.share(node.block)
    with pytest.raises(RuntimeError, match="without the one before"):
        tree.check_integrity([[node.block]])
    tree.pool.release([node.block])
    tree._leaves.clear()
    with pytest.raises(RuntimeError, match="never be evicted"):
        tree.check_integrity()
