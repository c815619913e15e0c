"""Who is next, and who is let in: the queue against a plain model, shares of clients, and the measured rate."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.serve.admission import Admission
from callboard.actors.serve.errors import Overloaded
from callboard.actors.serve.fairness import MAX_AWAY, Accounts, FairQueue
from callboard.actors.serve.sequence import Sequence


def make(accounts: Accounts, client: str, priority: int = 0) -> Sequence:
    sequence = Sequence((1,), 1, client=client, priority=priority)
    sequence.account = accounts.enter(client)
    return sequence


def expected_order(fresh: list[Sequence], resumed: list[Sequence]) -> list[Sequence]:
    """Priorities from the highest; in each those that ran before, the last to give way first; then by what was served
    and age, each client's own in the order of arrival."""
    order: list[Sequence] = []
    for priority in sorted({sequence.priority for sequence in fresh + resumed}, reverse=True):
        order += [sequence for sequence in reversed(resumed) if sequence.priority == priority]
        left = [sequence for sequence in fresh if sequence.priority == priority]
        while left:
            heads = {sequence.client: sequence for sequence in reversed(left)}
            head = min(heads.values(), key=lambda s: (s.account.served, s.sequence_id))
            left.remove(head)
            order.append(head)
    return order


@given(st.data())
def test_the_queue_is_in_order_whatever_comes_and_goes(data: st.DataObject) -> None:
    accounts, queue = Accounts(), FairQueue()
    fresh: list[Sequence] = []
    resumed: list[Sequence] = []
    for event in data.draw(
        st.lists(st.sampled_from(["come", "come", "go", "start", "give way", "serve"]), max_size=40)
    ):
        here = fresh + resumed
        if event == "come":
            fresh.append(make(accounts, data.draw(st.sampled_from("abc")), data.draw(st.integers(-1, 1))))
            queue.append(fresh[-1])
        elif event == "give way":
            resumed.append(make(accounts, data.draw(st.sampled_from("abc")), data.draw(st.integers(-1, 1))))
            queue.resume(resumed[-1])
        elif event == "serve" and here:
            data.draw(st.sampled_from(here)).account.served += data.draw(st.integers(1, 50))
        elif here:
            sequence = data.draw(st.sampled_from(here)) if event == "go" else next(queue.candidates())
            queue.remove(sequence)
            (fresh if sequence in fresh else resumed).remove(sequence)
        assert list(queue.candidates()) == expected_order(fresh, resumed)
        assert set(queue) == set(fresh + resumed)
        assert len(queue) == len(fresh) + len(resumed)
        assert queue.top_priority == max((sequence.priority for sequence in fresh + resumed), default=None)


def test_those_that_start_are_taken_off_while_the_queue_is_gone_through() -> None:
    accounts, queue = Accounts(), FairQueue()
    sequences = [make(accounts, client) for client in "aaabbc"]
    for sequence in sequences:
        queue.append(sequence)
    started = []
    for sequence in queue.candidates():
        if sequence is sequences[1]:
            continue  # it waits for something
        queue.remove(sequence)
        sequence.account.served += 10
        started.append(sequence.client)
    assert "".join(started) == "abcab"
    assert list(queue) == [sequences[1]]


def test_who_comes_later_or_comes_back_begins_level_with_those_that_are_there() -> None:
    accounts = Accounts()
    busy = accounts.enter("busy")
    busy.served = 100.0
    late = accounts.enter("late")
    assert late.served == 100.0
    late.served = 150.0
    accounts.leave(late)
    busy.served = 120.0
    assert accounts.enter("late").served == 150.0, "going away for a moment wipes nothing"
    accounts.leave(late)
    busy.served = 500.0
    assert accounts.enter("late").served == 500.0, "nobody saves up while away"


def test_clients_that_are_away_are_forgotten_one_day() -> None:
    accounts = Accounts()
    for number in range(3 * MAX_AWAY):
        accounts.leave(accounts.enter(str(number)))
    assert len(accounts._away) == MAX_AWAY


def test_who_is_one_too_many_hears_when_to_come_again() -> None:
    admission = Admission(3)
    admission.check(2, 2, now=0.0)
    with pytest.raises(Overloaded, match="2 requests are waiting") as caught:
        admission.check(3, 2, now=0.0)
    assert caught.value.hint == Overloaded.default_hint
    for second in range(0, 40, 4):
        admission.ended(float(second))
    with pytest.raises(Overloaded) as caught:
        admission.check(3, 5, now=36.5)
    assert "again in about 4 s" in caught.value.hint
    assert "in about 20 s" in caught.value.hint
    with pytest.raises(Overloaded) as caught:
        admission.check(3, 5, now=66.0)
    assert "again in about 30 s" in caught.value.hint, "nothing has ended for so long"
    assert admission.num_refused == 3
