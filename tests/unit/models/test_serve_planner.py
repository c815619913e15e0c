"""The planner against a model that is a pure function of the tokens: what is computed, when, and with which blocks.

The fake replica keeps the tokens that were written to each slot, as the real one keeps keys and values, and refuses a
step whose earlier tokens are not where the step says they are.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.models.tokenizer import TokenType, byte_alphabet
from callboard.actors.models.tokenizer_gguf import BytePairTokenizer
from callboard.actors.serve.errors import Overloaded
from callboard.actors.serve.planner import Limits, Planner
from callboard.actors.serve.sequence import SamplingParams, Sequence, Text
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import FinishReason, Step, StepResult

BLOCK_SIZE = 4
VOCAB = list(byte_alphabet().values())
TOKENIZER = BytePairTokenizer(VOCAB, [], [TokenType.NORMAL] * len(VOCAB), pre="gpt-2", stop_ids=frozenset({0}))


def next_token(tokens: list[int]) -> int:
    """What the fake model says after `tokens`: depends on all of them; sometimes the token that ends a turn."""
    return random.Random(str(tokens)).randrange(40)


def expected_answer(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    while len(tokens) - len(prompt) < max_tokens:
        tokens.append(next_token(tokens))
        if tokens[-1] in TOKENIZER.stop_ids:
            break
    return tokens[len(prompt) :]


class FakeReplica:
    def __init__(self, num_blocks: int) -> None:
        self.slots: list[int | None] = [None] * (num_blocks * BLOCK_SIZE)

    def execute(self, step: Step) -> StepResult:
        drawn: list[int] = []
        for part in step.sequences:
            place = [block * BLOCK_SIZE + offset for block in part.blocks for offset in range(BLOCK_SIZE)]
            for position, token in enumerate(part.token_ids, start=part.num_cached):
                self.slots[place[position]] = token
            known = [self.slots[slot] for slot in place[: part.num_cached + len(part.token_ids)]]
            tokens = [token for token in known if token is not None]
            assert len(tokens) == len(known), "a step counts on tokens that were never computed"
            if part.sampling is not None:
                drawn.append(next_token(tokens))
        return StepResult(step.step_id, tuple(drawn), 0.0)


def make_sequence(prompt: list[int], max_tokens: int) -> Sequence:
    params = SamplingParams(0.0, 0, 1.0, seed=0)
    return Sequence(tuple(prompt), max_tokens, params, TOKENIZER.stop_ids, Text(TOKENIZER, ()))


def run(planner: Planner, replica: FakeReplica, limit: int = 2000) -> list[Step]:
    steps: list[Step] = []
    while (step := planner.plan()) is not None:
        steps.append(step)
        planner.check_integrity()
        planner.apply(replica.execute(step))
        assert len(steps) < limit, "the planner makes no progress"
    return steps


prompts = st.lists(st.integers(1, 39), min_size=1, max_size=25)
requests = st.lists(st.tuples(prompts, st.integers(1, 20)), min_size=1, max_size=8)


@settings(max_examples=200)
@given(requests, st.integers(12, 30), st.integers(3, 16), st.integers(1, 3))
def test_every_request_gets_its_tokens_however_it_is_batched_chunked_and_preempted(
    wanted: list[tuple[list[int], int]], num_blocks: int, max_batch_tokens: int, max_running: int
) -> None:
    planner = Planner(num_blocks, BLOCK_SIZE, Limits(max_batch_tokens, max_running, 100))
    sequences = [make_sequence(prompt, count) for prompt, count in wanted]
    for sequence in sequences:
        planner.add(sequence)
    steps = run(planner, FakeReplica(num_blocks))
    for sequence, (prompt, count) in zip(sequences, wanted, strict=True):
        assert sequence.token_ids[len(prompt) :] == expected_answer(prompt, count)
        assert sequence.finish_reason is not None
    assert all(sum(len(part.token_ids) for part in step.sequences) <= max_batch_tokens for step in steps)
    assert all(len(step.sequences) <= max_running for step in steps)
    assert planner.pool.num_free == num_blocks


@settings(max_examples=200)
@given(st.data())
def test_arrivals_departures_and_lost_caches_in_any_order_leave_nothing_behind(data: st.DataObject) -> None:
    num_blocks = data.draw(st.integers(12, 24))
    planner = Planner(num_blocks, BLOCK_SIZE, Limits(8, 4, 100))
    replica = FakeReplica(num_blocks)
    here: list[tuple[Sequence, list[int], int]] = []
    for event in data.draw(
        st.lists(st.sampled_from(["arrive", "leave", "step", "leave mid-step", "die"]), max_size=40)
    ):
        if event == "arrive":
            prompt, count = data.draw(prompts), data.draw(st.integers(1, 15))
            here.append((make_sequence(prompt, count), prompt, count))
            planner.add(here[-1][0])
        elif event == "leave" and here:
            planner.remove(here.pop(data.draw(st.integers(0, len(here) - 1)))[0])
        elif (step := planner.plan()) is not None:
            if event == "die":
                assert all(sequence in planner.waiting for sequence in planner.rewind())
                replica = FakeReplica(num_blocks)
            else:
                result = replica.execute(step)
                if event == "leave mid-step" and here:
                    planner.remove(here.pop()[0])
                planner.apply(result)
        planner.check_integrity()
    run(planner, replica)
    assert planner.pool.num_free == num_blocks
    for sequence, prompt, count in here:
        assert sequence.token_ids[len(prompt) :] == expected_answer(prompt, count)


def test_decoding_goes_on_in_every_step_while_a_long_prompt_is_computed_in_chunks() -> None:
    planner = Planner(40, BLOCK_SIZE, Limits(8, 4, 10))
    replica = FakeReplica(40)
    decoding, prompt = make_sequence([1, 2, 3], 20), make_sequence(list(range(1, 36)), 1)
    decoding.stop_ids = frozenset()
    planner.add(decoding)
    step = planner.plan()
    assert step is not None
    planner.apply(replica.execute(step))
    planner.add(prompt)
    chunks = []
    while not prompt.is_done:
        step = planner.plan()
        assert step is not None
        sizes = {part.sequence_id: len(part.token_ids) for part in step.sequences}
        assert sizes[decoding.sequence_id] == 1
        chunks.append(sizes[prompt.sequence_id])
        planner.apply(replica.execute(step))
    assert chunks == [7, 7, 7, 7, 7]


def test_the_youngest_gives_way_when_blocks_run_out() -> None:
    planner = Planner(6, BLOCK_SIZE, Limits(32, 4, 10))
    old, young = make_sequence([1] * 8, 12), make_sequence([2] * 8, 12)
    for sequence in (old, young):
        sequence.stop_ids = frozenset()
        planner.add(sequence)
    replica = FakeReplica(6)
    while not planner.num_preemptions:
        step = planner.plan()
        assert step is not None
        planner.apply(replica.execute(step))
    assert planner.running == [old]
    assert list(planner.waiting) == [young]
    run(planner, replica)
    assert old.finish_reason is young.finish_reason is FinishReason.LENGTH


def test_first_come_is_first_served() -> None:
    planner = Planner(8, BLOCK_SIZE, Limits(64, 8, 10))
    big, small = make_sequence([1] * 30, 1), make_sequence([2], 1)
    first = make_sequence([3] * 8, 9)
    first.stop_ids = frozenset()
    replica = FakeReplica(8)
    for sequence in (first, big, small):
        planner.add(sequence)
    step = planner.plan()
    assert step is not None
    assert [part.sequence_id for part in step.sequences] == [first.sequence_id], "the small one must not overtake"
    planner.apply(replica.execute(step))
    run(planner, replica)
    assert big.is_done
    assert small.is_done


def test_a_full_queue_takes_no_more() -> None:
    planner = Planner(8, BLOCK_SIZE, Limits(8, 1, 2))
    for _ in range(2):
        planner.add(make_sequence([1], 1))
    with pytest.raises(Overloaded) as caught:
        planner.add(make_sequence([1], 1))
    assert caught.value.hint
    assert len(planner.waiting) == 2


def test_what_the_pool_can_never_hold_is_refused() -> None:
    planner = Planner(2, BLOCK_SIZE, Limits(8, 1, 2))
    planner.add(make_sequence([1] * 4, 4))
    with pytest.raises(RequestInvalid, match="9 tokens"):
        planner.add(make_sequence([1] * 4, 5))
