"""The planner against a model that is a pure function of the tokens: what is computed, when, and with which blocks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planner_loop import BLOCK_SIZE, FakeReplica, Loop, computed, expected_answer, make_sequence, unending

from callboard.actors.serve.planner import Limits, Planner
from callboard.actors.serve.sequence import Sequence
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import FinishReason, Pooling
from callboard.schemas.serve_steps import StepResult

prompts = st.lists(st.integers(1, 39), min_size=1, max_size=25)
# Prompts that begin alike, and of which some are the same.
alike = st.builds(
    lambda n, tail: [*range(1, 13)][:n] + tail, st.integers(1, 12), st.lists(st.integers(1, 3), max_size=9)
)
request = st.tuples(st.one_of(prompts, alike), st.integers(1, 20), st.integers(0, 2), st.sampled_from([0, 0, 3]))
requests = st.lists(request, min_size=1, max_size=8)


@settings(max_examples=200)
@given(requests, st.integers(12, 30), st.integers(3, 16), st.integers(1, 3), st.booleans())
def test_every_request_gets_its_tokens_however_it_is_batched_chunked_shared_and_preempted(
    wanted: list[tuple[list[int], int, int, int]],
    num_blocks: int,
    max_batch_tokens: int,
    max_running: int,
    overlap: bool,
) -> None:
    planner = Planner(num_blocks, BLOCK_SIZE, Limits(max_batch_tokens, max_running))
    sequences = [make_sequence(p, count, priority=priority, num_draft=d) for p, count, priority, d in wanted]
    for sequence in sequences:
        planner.add(sequence)
    steps = Loop(planner, num_blocks, overlap=overlap).run()
    for sequence, (prompt, count, _, _) in zip(sequences, wanted, strict=True):
        assert sequence.token_ids[len(prompt) :] == expected_answer(prompt, count)
        assert sequence.finish_reason is not None
    assert all(sum(part.num_tokens + part.num_draft for part in step.sequences) <= max_batch_tokens for step in steps)
    assert all(len(step.sequences) <= max_running for step in steps)
    assert planner.pool.num_free == num_blocks


@settings(max_examples=200)
@given(st.data(), st.booleans())
def test_arrivals_departures_and_lost_caches_in_any_order_leave_nothing_behind(
    data: st.DataObject, overlap: bool
) -> None:
    num_blocks = data.draw(st.integers(12, 24))
    planner = Planner(num_blocks, BLOCK_SIZE, Limits(8, 4, max_sessions=3))
    loop = Loop(planner, num_blocks, overlap=overlap)
    here: list[tuple[Sequence, list[int], int]] = []
    now = 0.0
    for event in data.draw(
        st.lists(
            st.sampled_from(["arrive", "leave", "step", "step", "leave mid-step", "die", "turn ends"]), max_size=40
        )
    ):
        now += 100
        if event == "arrive":
            prompt, count, priority, num_draft = data.draw(request)
            count = min(count, 15)
            here.append((make_sequence(prompt, count, priority=priority, num_draft=num_draft), prompt, count))
            planner.add(here[-1][0])
        elif event == "leave" and here:
            planner.remove(here.pop(data.draw(st.integers(0, len(here) - 1)))[0])
        elif event == "leave mid-step" and here:
            loop.plan()
            planner.remove(here.pop()[0])
        elif event == "die":
            loop.plan()
            assert all(sequence in [*planner.waiting] for sequence in loop.die())
        elif event == "turn ends" and here:
            name = data.draw(st.sampled_from("abcde"))
            planner.keep_session(name, data.draw(st.sampled_from(here))[0], now, 250.0)
        else:
            planner.sessions.expire(now)
            loop.turn()
        planner.check_integrity()
    loop.run()
    assert planner.pool.num_free == num_blocks
    for sequence, prompt, count in here:
        assert sequence.token_ids[len(prompt) :] == expected_answer(prompt, count)


def test_a_step_is_planned_while_the_one_before_is_under_way_and_goes_on_with_what_that_draws() -> None:
    planner = Planner(20, BLOCK_SIZE, Limits(16, 4))
    sequence = make_sequence([1, 2, 3], 9, stop_ids=frozenset())
    planner.add(sequence)
    first, second = planner.plan(), planner.plan()
    assert first is not None
    assert second is not None
    assert [(part.num_cached, part.num_tokens, part.draws) for part in first.sequences] == [(0, 3, True)]
    assert [(part.num_cached, part.num_tokens, part.draws) for part in second.sequences] == [(3, 1, True)]
    with pytest.raises(RuntimeError, match="under way"):
        planner.plan()
    replica = FakeReplica(20)
    assert planner.apply(replica.execute(first)) == [sequence]
    assert len(sequence.token_ids) == 4
    with pytest.raises(RuntimeError, match="not the one"):
        planner.apply(StepResult(1, (), 0.0))


def test_no_more_tokens_are_drawn_ahead_than_were_asked_for() -> None:
    planner = Planner(20, BLOCK_SIZE, Limits(16, 4))
    planner.add(make_sequence([1, 2, 3], 2, stop_ids=frozenset()))
    loop = Loop(planner, 20, overlap=True)
    loop.run()
    assert len(loop.steps) == 2


def test_a_sequence_that_guesses_is_not_planned_ahead_and_its_guesses_speed_it_up() -> None:
    counts = []
    for num_draft in (0, 3):
        planner = Planner(40, BLOCK_SIZE, Limits(16, 4))
        sequence = make_sequence([1, 2, 3], 40, stop_ids=frozenset(), num_draft=num_draft)
        planner.add(sequence)
        loop = Loop(planner, 40, overlap=True)
        loop.run()
        counts.append(len(loop.steps))
        assert sequence.token_ids == unending([1, 2, 3], 40)
    assert counts[1] < 0.6 * counts[0]
    assert sequence.num_accepted > 10
    assert sequence.num_drafted >= sequence.num_accepted


def test_in_a_crowd_nobody_guesses_and_steps_are_planned_ahead_until_it_has_thinned_out() -> None:
    """Nine at once leave no row for a guess of each; one of them goes on when the others have ended."""
    planner = Planner(200, BLOCK_SIZE, Limits(64, 20))
    long, *others = [
        make_sequence([1, 2, number], count, stop_ids=frozenset(), num_draft=3)
        for number, count in enumerate([60, *[20] * 8])
    ]
    for sequence in (long, *others):
        planner.add(sequence)
    loop = Loop(planner, 200, overlap=True)
    loop.run()
    crowded = [step for step in loop.steps if len(step.sequences) > 8]
    assert len(crowded) >= 20
    assert not any(part.num_draft for step in crowded for part in step.sequences)
    assert all(sum(1 + part.num_draft for part in step.sequences) <= 16 for step in loop.steps)
    assert not any(sequence.num_drafted for sequence in others)
    assert long.num_accepted > 5
    assert long.token_ids == unending([1, 2, 0], 60)


def test_decoding_goes_on_in_every_step_while_a_long_prompt_is_computed_in_chunks() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(8, 4))
    loop = Loop(planner, 40, overlap=False)
    decoding, prompt = make_sequence([1, 2, 3], 20, stop_ids=frozenset()), make_sequence(list(range(1, 36)), 1)
    planner.add(decoding)
    loop.turn()
    planner.add(prompt)
    chunks = []
    while not prompt.is_done:
        loop.turn()
        sizes = {part.sequence_id: part.num_tokens for part in loop.steps[-1].sequences}
        assert sizes[decoding.sequence_id] == 1
        chunks.append(sizes[prompt.sequence_id])
    assert chunks == [7, 7, 7, 7, 7]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    planner = Planner(6, BLOCK_SIZE, Limits(32, 4))
    old, young = (make_sequence([token] * 8, 12, stop_ids=frozenset()) for token in (1, 2))
    planner.add(old)
    planner.add(young)
    loop = Loop(planner, 6, overlap=False)
    while not planner.num_preemptions:
        loop.turn()
    assert planner.running == [old]
    assert list(planner.waiting) == [young]
    loop.run()
    assert old.finish_reason is young.finish_reason is FinishReason.LENGTH


def test_the_least_important_gives_way_first_however_old_it_is() -> None:
    planner = Planner(6, BLOCK_SIZE, Limits(32, 4))
    lesser = make_sequence([1] * 8, 12, stop_ids=frozenset(), priority=-1)
    usual = make_sequence([2] * 8, 12, stop_ids=frozenset())
    planner.add(lesser)
    planner.add(usual)
    loop = Loop(planner, 6, overlap=False)
    while not planner.num_preemptions:
        loop.turn()
    assert planner.running == [usual]


@pytest.mark.parametrize("num_blocks", [5, 40])
def test_who_is_more_important_does_not_wait_for_room_that_others_have(num_blocks: int) -> None:
    """With five blocks the others hold all of them, with forty the two places in the batch."""
    planner = Planner(num_blocks, BLOCK_SIZE, Limits(32, 2))
    usual = [make_sequence([token] * 6, 8, stop_ids=frozenset()) for token in (1, 2)]
    for sequence in usual:
        planner.add(sequence)
    loop = Loop(planner, num_blocks, overlap=True)
    loop.turn()
    urgent = make_sequence([3] * 5, 3, priority=5, stop_ids=frozenset())
    planner.add(urgent)
    loop.turn()
    assert urgent in planner.running
    assert planner.num_preemptions > 0
    loop.run()
    assert all(sequence.num_generated == 8 for sequence in usual)


def test_what_gave_way_is_not_computed_again_before_its_token_is_here() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(32, 1))
    usual = make_sequence([1] * 6, 8, stop_ids=frozenset())
    planner.add(usual)
    loop = Loop(planner, 40, overlap=True)
    first = planner.plan()
    assert first is not None
    urgent = make_sequence([3] * 5, 1, priority=5, stop_ids=frozenset())
    planner.add(urgent)
    second = planner.plan()
    assert second is not None
    assert second.forget == (usual.sequence_id,)
    assert [part.sequence_id for part in second.sequences] == [urgent.sequence_id]
    planner.remove(urgent)
    loop.in_flight.extend([first, second])
    assert planner.apply(loop.replica.execute(loop.in_flight.popleft())) == [usual]
    assert usual.num_generated == 1
    loop.run()
    assert usual.num_generated == 8


def test_first_come_is_first_served() -> None:
    planner = Planner(8, BLOCK_SIZE, Limits(64, 8))
    big, small = make_sequence([1] * 30, 1), make_sequence([2], 1)
    first = make_sequence([3] * 8, 9, stop_ids=frozenset())
    for sequence in (first, big, small):
        planner.add(sequence)
    loop = Loop(planner, 8, overlap=False)
    loop.turn()
    sent = [part.sequence_id for part in loop.steps[0].sequences]
    assert sent == [first.sequence_id], "the small one must not overtake"
    loop.run()
    assert big.is_done
    assert small.is_done


def test_a_client_with_many_requests_does_not_keep_another_waiting() -> None:
    planner = Planner(100, BLOCK_SIZE, Limits(16, 2))
    many = [make_sequence([i % 30 + 1] * 5, 6, client="many", stop_ids=frozenset()) for i in range(100)]
    for sequence in many:
        planner.add(sequence)
    loop = Loop(planner, 100, overlap=True)
    for _ in range(10):
        loop.turn()
    one = make_sequence([35] * 5, 6, client="one", stop_ids=frozenset())
    planner.add(one)
    done = sum(sequence.is_done for sequence in many)
    while not one.is_done:
        loop.turn()
    assert sum(sequence.is_done for sequence in many) - done <= 4


def test_two_clients_with_much_to_do_get_the_same_share_whatever_the_size_of_their_requests() -> None:
    planner = Planner(400, BLOCK_SIZE, Limits(64, 4))
    small = [make_sequence([i % 30 + 1] * 3, 4, client="small", stop_ids=frozenset()) for i in range(200)]
    large = [make_sequence([i % 30 + 1] * 20, 30, client="large", stop_ids=frozenset()) for i in range(200)]
    for sequence in (*large, *small):
        planner.add(sequence)
    loop = Loop(planner, 400, overlap=True)
    for _ in range(300):
        loop.turn()
    shares = [sum(2 * s.num_generated + s.num_computed for s in group if s.num_generated) for group in (small, large)]
    assert min(shares) > 0.75 * max(shares)


def test_what_the_pool_can_never_hold_is_refused() -> None:
    planner = Planner(2, BLOCK_SIZE, Limits(8, 1))
    planner.add(make_sequence([1] * 4, 4))
    with pytest.raises(RequestInvalid, match="9 tokens"):
        planner.add(make_sequence([1] * 4, 5))
    assert planner.load == 1


# Beside tokens


def test_log_probabilities_of_a_prompt_are_complete_after_chunks_and_a_preemption() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(8, 1))
    loop = Loop(planner, 40, overlap=False)
    prompt = [*range(1, 30)]
    computed(loop, make_sequence(prompt, 1))
    scored = make_sequence(prompt, 0, prompt_logprobs=0, max_cached=0)
    planner.add(scored)
    loop.turn()
    computed(loop, make_sequence([33] * 5, 1, priority=5))
    assert scored.is_done
    assert [entry and entry.logprob for entry in scored.scores] == [None, *(-float(token) for token in prompt[1:])]
    assert scored.num_cached_tokens == 0
    # Of a continuation alone, what stands before it may be known.
    continuation = make_sequence([*prompt, 3, 4], 0, prompt_logprobs=0, max_cached=28, first_scored=29)
    assert computed(loop, continuation) == 3
    assert [entry and entry.logprob for entry in continuation.scores[29:]] == [-3.0, -4.0]


def test_a_prompt_may_be_scored_and_answered_in_one() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(8, 1))
    sequence = make_sequence([*range(1, 12)], 5, prompt_logprobs=2, max_cached=0, stop_ids=frozenset())
    computed(Loop(planner, 40, overlap=True), sequence)
    assert sequence.num_generated == 5
    assert not sequence.num_unscored


@pytest.mark.parametrize("overlap", [True, False])
def test_a_text_is_pooled_once_all_of_it_is_computed(overlap: bool) -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(8, 2))
    sequences = [make_sequence([*range(1, n)], 0, pooling=Pooling.MEAN, max_cached=0) for n in (2, 9, 10, 30)]
    computed(Loop(planner, 40, overlap=overlap), *sequences)
    assert [sequence.pooled for sequence in sequences] == [tuple(map(float, s.prompt_ids)) for s in sequences]


@pytest.mark.parametrize("overlap", [True, False])
def test_a_sequence_that_cannot_be_computed_ends_alone(overlap: bool) -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(16, 4))
    loop = Loop(planner, 40, overlap=overlap)
    loop.replica.fails = lambda start: start.adapter == "gone"
    good, bad = make_sequence([1, 2], 5, stop_ids=frozenset()), make_sequence([1, 2], 5, adapter="gone")
    computed(loop, good, bad)
    assert good.num_generated == 5
    assert bad.error is not None
    assert bad.error.code == "model.request"
    assert planner.pool.num_free == 40


def test_a_result_that_is_not_what_was_asked_for_stops_everything() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(16, 4))
    planner.add(make_sequence([1, 2], 5))
    step = planner.plan()
    assert step is not None
    with pytest.raises(RuntimeError, match="0 results"):
        planner.apply(StepResult(step.step_id, (), 0.0))
