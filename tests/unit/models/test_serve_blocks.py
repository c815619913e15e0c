"""The block pool keeps its books whatever is done to it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from callboard.actors.serve.blocks import BlockPool, OutOfBlocks

NUM_BLOCKS = 7


class PoolMachine(RuleBasedStateMachine):
    """Holders take, share, keep and give back blocks; the model is a list of what each holds, and what is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.holders: list[list[int]] = []
        self.kept: set[int] = set()

    @property
    def held(self) -> set[int]:
        return {block for holder in self.holders for block in holder}

    @rule(count=st.integers(0, NUM_BLOCKS + 1))
    def allocate(self, count: int) -> None:
        blank = self.pool.num_blank
        if count > blank:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(count)
            assert self.pool.num_blank == blank
        else:
            blocks = self.pool.allocate(count)
            assert len(set(blocks)) == count
            assert not set(blocks) & (self.held | self.kept)
            self.holders.append(blocks)

    @precondition(lambda self: self.held | self.kept)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.held | self.kept)), unique=True))
        for block in blocks:
            self.pool.share(block)
        self.holders.append(blocks)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        blocks = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        idle = self.pool.release(blocks)
        assert sorted(idle) == sorted((set(blocks) & self.kept) - self.held)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.held)))
        self.pool.keep(block)
        self.kept.add(block)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(sorted(self.kept)))
        self.pool.discard(block)
        self.kept.remove(block)

    @invariant()
    def books_are_right(self) -> None:
        self.pool.check_integrity(self.holders, self.kept)
        assert self.pool.num_free == NUM_BLOCKS - len(self.held)
        assert self.pool.num_idle == len(self.kept - self.held)


TestPool = PoolMachine.TestCase


def test_what_cannot_be_right_stops_everything() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    with pytest.raises(RuntimeError, match="should have 0"):
        pool.check_integrity()
    with pytest.raises(RuntimeError, match="not kept"):
        pool.discard(block)
    pool.release([block])
    with pytest.raises(RuntimeError, match="more often"):
        pool.release([block])
    with pytest.raises(RuntimeError, match="is free"):
        pool.share(block)
    with pytest.raises(RuntimeError, match="nothing in it"):
        pool.keep(block)
    with pytest.raises(RuntimeError, match="can be found"):
        pool.check_integrity(kept=[block])
