"""A work queue's state, held against a simple model of it, and against its own log read again."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from callboard.runtime.errors import LeaseLost, QueueFull
from callboard.runtime.queue_journal import _Compaction
from callboard.runtime.queue_state import DEAD, DELAYED, DONE, LEASED, READY, QueueConfig, QueueEvent, QueueState
from callboard.schemas.queue import NewItem
from callboard.schemas.queue_log import Back, DoneEvent, DroppedEvent, ExtendedEvent, RequeuedEvent

CONFIG = QueueConfig(
    max_attempts=3, backoff_s=1.0, backoff_max_s=3.0, max_items=30, max_bytes=1000, remember_s=50.0, remember_items=40
)

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(QueueEvent).decode


class Log:
    """A queue without a bus: what is applied is kept, as bytes."""

    def __init__(self) -> None:
        self.state = QueueState(CONFIG)
        self.state.whole()
        self.events: list[bytes] = []

    def commit(self, *events: Any) -> None:
        for event in events:
            self.events.append(_encode(event))
            self.state.apply(_decode(self.events[-1]))

    def put(self, payload: bytes, now: float, **more: Any) -> int:
        events, ids, _ = self.state.put((NewItem(payload, **more),), now)
        self.commit(*events)
        return ids[0]

    def give(self, now: float, lease_s: float = 10.0) -> tuple[int, int] | None:
        event = self.state.give(lease_s, now)
        if event is None:
            return None
        self.commit(event)
        return event.id, event.lease

    def pass_time(self, now: float) -> None:
        for event in self.state.passed(now):
            self.commit(event)

    def fail(self, id_: int, now: float, **more: Any) -> None:
        options = {"error": "no", "retry_after_s": None, "dead": False, "why": Back.FAILED, **more}
        self.commit(self.state.fail(id_, now, **options))

    def again(self) -> QueueState:
        state = QueueState(CONFIG)
        for event in self.events:
            state.apply(_decode(event))
        state.whole()
        return state


def view(state: QueueState, now: float) -> Any:
    """All that matters of a state at a time."""
    for event in state.passed(now):
        state.apply(event)
    items = {
        item.id: (item.payload, item.key, item.priority, item.phase, item.attempt, item.lease, item.error)
        for item in state.items.values()
    }
    return (
        items,
        state.counts,
        state.bytes,
        state.next_id,
        state.next_lease,
        state.totals,
        state.keys,
        state.past_keys,
        state.past_leases,
    )


def order(state: QueueState, now: float) -> list[int]:
    """In which order all that is ready would be given out."""
    found: list[int] = []
    while (event := state.give(1e6, now)) is not None:
        state.apply(event)
        found.append(event.id)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_a_random_life_agrees_with_a_simple_model_and_with_its_log(seed: int) -> None:
    rng = random.Random(seed)
    log, now = Log(), 1000.0
    model: dict[int, dict[str, Any]] = {}  # by number: phase, attempt, lease, until, priority, not before
    done: set[int] = set()
    leases: list[tuple[int, int]] = []
    compaction: _Compaction | None = None
    began = 0

    def settle_times() -> None:
        for entry in model.values():
            if entry["phase"] == DELAYED and entry["not_before"] <= now:
                entry["phase"] = READY
            elif entry["phase"] == LEASED and entry["until"] <= now:
                came_back(entry, min(2.0 ** (entry["attempt"] - 1), 3.0))

    def came_back(entry: dict[str, Any], after: float, *, dead: bool = False) -> None:
        if dead or entry["attempt"] >= CONFIG.max_attempts:
            entry["phase"] = DEAD
        elif after:
            entry.update(phase=DELAYED, not_before=now + after)
        else:
            entry["phase"] = READY

    def holds(id_: int, lease: int) -> bool:
        try:
            past = log.state.settled(id_, lease)
        except LeaseLost:
            assert id_ not in model or model[id_]["lease"] != lease
            return False
        if past is not None:
            assert past.outcome != DONE or id_ in done
            return False
        assert model[id_]["lease"] == lease
        return True

    for _ in range(400):
        choice = rng.random()
        now += 1e-6  # no two things happen at once
        log.pass_time(now)
        settle_times()
        if choice < 0.25:
            delay, priority = rng.choice([0.0, 0.0, 2.0]), rng.choice([0, 0, 1])
            key = rng.choice(["", "", *"abcdef"])
            known = log.state.keys.get(key) if key else None
            try:
                id_ = log.put(rng.randbytes(20), now, priority=priority, delay_s=delay, key=key)
            except QueueFull:
                assert len(model) >= CONFIG.max_items or (len(model) + 1) * 20 > CONFIG.max_bytes
                continue
            if known is not None:
                assert id_ == known
            if id_ in model or id_ in done:
                assert key
                continue
            phase = DELAYED if delay else READY
            model[id_] = {
                "phase": phase, "attempt": 0, "lease": 0, "until": 0.0, "priority": priority, "not_before": now + delay
            }  # fmt: skip
        elif choice < 0.5:
            ready = sorted((-entry["priority"], id_) for id_, entry in model.items() if entry["phase"] == READY)
            given = log.give(now, 5.0)
            assert (given is not None) == bool(ready)
            if given is not None:
                id_, lease = given
                assert id_ == ready[0][1]
                model[id_].update(phase=LEASED, attempt=model[id_]["attempt"] + 1, lease=lease, until=now + 5.0)
                leases.append(given)
        elif choice < 0.85 and leases:
            id_, lease = rng.choice(leases[-12:])
            if not holds(id_, lease):
                continue
            entry = model[id_]
            if choice < 0.65:
                log.commit(DoneEvent(id_, lease, now))
                assert id_ not in done
                done.add(id_)
                del model[id_]
            elif entry["phase"] == DEAD:
                continue
            elif choice < 0.75:
                dead = rng.random() < 0.1
                log.fail(id_, now, dead=dead)
                came_back(entry, min(2.0 ** (entry["attempt"] - 1), 3.0), dead=dead)
                entry["lease"] = 0
            elif choice < 0.8:
                log.fail(id_, now, why=Back.RETURNED)
                entry.update(phase=READY, attempt=entry["attempt"] - 1, lease=0)
            else:
                log.commit(ExtendedEvent(id_, lease, now + 7.0))
                entry.update(phase=LEASED, until=now + 7.0)
        elif choice < 0.9:
            dead_ids = [id_ for id_, entry in model.items() if entry["phase"] == DEAD]
            assert [item.id for item in log.state.dead()] == sorted(dead_ids)
            for id_ in dead_ids:
                if rng.random() < 0.5:
                    log.commit(RequeuedEvent(id_, now))
                    model[id_].update(phase=READY, attempt=0, lease=0)
                else:
                    log.commit(DroppedEvent(id_, now))
                    done.add(id_)  # as gone as if it were
                    del model[id_]
        elif choice < 0.93:
            if compaction is None:
                compaction, began = _Compaction(log.state, 0), len(log.events)
            log.events += map(_encode, compaction.chunk(300).events)
            if compaction.over:
                del log.events[:began]
                compaction = None
        else:
            now += rng.choice([0.1, 1.0, 4.0, 20.0])
    log.pass_time(now)
    settle_times()
    assert {id_: (entry["phase"], entry["attempt"]) for id_, entry in model.items()} == {
        item.id: (item.phase, item.attempt) for item in log.state.items.values()
    }
    for phase in (READY, DELAYED, LEASED, DEAD):
        assert log.state.counts[phase] == sum(entry["phase"] == phase for entry in model.values())
    again = log.again()
    assert view(again, now) == view(log.state, now)
    assert order(again, now) == order(log.state, now)


def test_items_are_given_by_priority_and_age() -> None:
    log = Log()
    first, second, urgent = log.put(b"1", 0.0), log.put(b"2", 0.0), log.put(b"3", 0.0, priority=5)
    later = log.put(b"4", 0.0, delay_s=10.0, priority=9)
    assert order(log.again(), 1.0) == [urgent, first, second]
    log.pass_time(10.0)
    assert order(log.state, 10.0) == [later, urgent, first, second]


def test_each_failed_attempt_waits_longer_and_the_last_is_the_end() -> None:
    log = Log()
    id_ = log.put(b"1", 0.0)
    now = 0.0
    for waits in (1.0, 2.0):
        assert log.give(now) is not None
        log.fail(id_, now)
        log.pass_time(now + waits - 0.01)
        assert log.give(now + waits - 0.01) is None
        now += waits
        log.pass_time(now)
    assert log.give(now) is not None
    log.fail(id_, now)
    assert log.state.items[id_].phase == DEAD
    assert log.state.next_time() is None or log.give(now + 1000.0) is None


def test_what_is_remembered_is_bounded_in_time_and_number() -> None:
    log = Log()
    for number in range(60):
        id_ = log.put(b"", float(number), key=f"k{number}")
        given = log.give(float(number))
        assert given is not None
        log.commit(DoneEvent(id_, given[1], float(number)))
    assert list(log.state.past_keys) == [f"k{number}" for number in range(20, 60)]
    assert len(log.state.past_leases) == CONFIG.remember_items
    log.pass_time(100.0)
    assert list(log.state.past_keys) == [f"k{number}" for number in range(51, 60)]
    assert log.put(b"", 100.0, key="k55") == 56
    assert log.put(b"", 100.0, key="k5") == 61


def test_what_is_out_of_date_takes_no_room_however_long_its_time() -> None:
    log = Log()
    for number in range(5000):
        id_ = log.put(b"", float(number), delay_s=1e8 if number % 2 else 0.0)
        if number % 2:
            log.commit(DroppedEvent(id_, float(number)))
            continue
        given = log.give(float(number), 1e8)
        assert given is not None
        log.commit(ExtendedEvent(*given, float(number) + 2e8))
        log.commit(DoneEvent(*given, float(number)))
    state = log.state
    assert not state.items
    assert max(map(len, (state._ready, state._delayed, state._leased))) <= 1001
