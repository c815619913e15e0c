"""The block pool keeps its books whatever is done to it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.actors.serve.blocks import BlockPool, OutOfBlocks

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share and give back blocks; the model is a list of what each holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[list[int]] = []

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> None:
        free = self.pool.num_free
        if count > free:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            assert self.pool.num_free == free
        else:
            blocks = self.pool.allocate(count)
            assert len(set(blocks)) == count
            assert not set(blocks) & {block for holder in self.holders for block in holder}
            self.holders.append(blocks)

    @precondition(lambda self: any(self.holders))
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.sampled_from([holder for holder in self.holders if holder]))
        for block in blocks:
            self.pool.share(block)
        self.holders.append(list(blocks))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.holders) - 1))
        self.pool.release(self.holders.pop(index))

    @invariant()
    def books_are_right(self) -> None:
        self.pool.check_integrity(self.holders)
        assert self.pool.num_free == NUM_BLOCKS - len({block for holder in self.holders for block in holder})


TestPool = PoolMachine.TestCase


def test_what_cannot_be_right_stops_everything() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(RuntimeError, match="should have 0"):
        pool.check_integrity()
    pool.release([block])
    with pytest.raises(RuntimeError, match="more often"):
        pool.release([block])
    with pytest.raises(RuntimeError, match="is free"):
        pool.share(block)
