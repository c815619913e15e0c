"""The planner does not compute again what is known: prompts that begin alike, preempted sequences, sessions."""

from __future__ import annotations

import pytest
from planner_loop import BLOCK_SIZE, Loop, computed, make_sequence

from callboard.actors.serve.planner import Limits, Planner


@pytest.mark.parametrize("overlap", [True, False])
def test_a_prompt_that_begins_like_an_earlier_conversation_is_computed_from_where_it_differs(overlap: bool) -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(16, 4))
    loop = Loop(planner, 40, overlap=overlap)
    first = make_sequence([*range(1, 15)], 6, stop_ids=frozenset())
    computed(loop, first)
    follow_up = [*first.token_ids, 7, 7, 7]
    # 14 + 6 tokens; the last was never computed, so four whole blocks are known.
    assert computed(loop, make_sequence(follow_up, 1)) == len(follow_up) - 16
    # Another way on from the middle of the first.
    assert computed(loop, make_sequence([*range(1, 10), 9, 9, 9], 1)) == 4
    # At least one token is computed, to draw from.
    assert computed(loop, make_sequence([*range(1, 13)], 1)) == 4


def test_prompts_that_are_the_same_are_computed_once_although_they_come_at_once() -> None:
    planner = Planner(60, BLOCK_SIZE, Limits(16, 8))
    loop = Loop(planner, 60, overlap=True)
    prompt = [*range(1, 39)]
    sequences = [make_sequence(prompt, 1) for _ in range(5)]
    assert computed(loop, *sequences) == 38 + 4 * 2
    assert planner.num_cached_tokens == 4 * 36


def test_prompts_that_share_only_their_beginning_do_not_wait_for_each_other() -> None:
    planner = Planner(60, BLOCK_SIZE, Limits(64, 8))
    sequences = [make_sequence([1, 2, 3, 4, *[token] * 20], 1) for token in (5, 6)]
    for sequence in sequences:
        planner.add(sequence)
    step = planner.plan()
    assert step is not None
    assert len(step.sequences) == 2


def test_who_waits_for_a_prefix_goes_ahead_when_the_one_that_computes_it_leaves() -> None:
    planner = Planner(60, BLOCK_SIZE, Limits(8, 8))
    first, second = (make_sequence([*range(1, 39)], 1) for _ in range(2))
    planner.add(first)
    planner.add(second)
    loop = Loop(planner, 60, overlap=False)
    loop.turn()
    assert planner.running == [first]
    planner.remove(first)
    loop.run()
    assert second.is_done
    assert second.num_cached_tokens == 8


def test_other_adapters_and_other_arithmetic_share_nothing() -> None:
    loop = Loop(Planner(40, BLOCK_SIZE, Limits(16, 4)), 40, overlap=True)
    prompt = [*range(1, 15)]
    assert computed(loop, make_sequence(prompt, 1)) == 14
    for other in ({"adapter": "a"}, {"adapter": "a", "adapter_generation": 2}, {"deterministic": True}):
        assert computed(loop, make_sequence(prompt, 1, **other)) == 14
        assert computed(loop, make_sequence(prompt, 1, **other)) == 2


def test_preempted_sequences_find_what_is_left_of_their_blocks() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(32, 1))
    usual = make_sequence([*range(1, 21)], 8, stop_ids=frozenset())
    planner.add(usual)
    loop = Loop(planner, 40, overlap=False)
    loop.turn()
    assert computed(loop, make_sequence([33] * 5, 1, priority=5)) == 5 + 7  # its own, and what the other had not done


def test_sessions_keep_their_blocks_longer_than_others_and_give_them_up_under_pressure() -> None:
    planner = Planner(10, BLOCK_SIZE, Limits(64, 4, max_sessions=2))
    loop = Loop(planner, 10, overlap=True)

    def talk(name: str, prompt: list[int]) -> int:
        sequence = make_sequence(prompt, 1)
        count = computed(loop, sequence)
        planner.keep_session(name, sequence, 0.0)
        planner.check_integrity()
        return count

    kept = [*range(1, 12)]
    assert talk("a", kept) == 11
    for token in range(20, 30):  # others come and go, and would have pushed it out
        computed(loop, make_sequence([token] * 12, 1))
    assert talk("a", [*kept, 5, 5]) == 5
    assert planner.tree.num_pinned == 3
    assert talk("b", [15] * 9) == 9
    assert len(planner.sessions) == 2
    computed(loop, make_sequence([16] * 38, 1))  # needs every block: running requests win
    assert (len(planner.sessions), planner.tree.num_pinned) == (0, 0)
    assert talk("a", kept) == 11
    assert planner.sessions.close("a")
    assert not planner.sessions.close("a")
    assert planner.tree.num_pinned == 0


def test_sessions_end_after_their_time_and_beyond_their_number() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(64, 4, max_sessions=2, session_ttl_s=10.0))
    loop = Loop(planner, 40, overlap=True)
    for name, ttl in (("a", 0.0), ("b", 50.0), ("c", 0.0)):
        sequence = make_sequence([ord(name) - 90] * 9, 1)
        computed(loop, sequence)
        planner.keep_session(name, sequence, 0.0, ttl)
    assert "a" not in planner.sessions
    planner.plan(now=9.0)
    assert len(planner.sessions) == 2
    planner.plan(now=10.0)
    assert "b" in planner.sessions
    assert "c" not in planner.sessions
    planner.plan(now=50.0)
    assert not planner.tree.num_pinned
