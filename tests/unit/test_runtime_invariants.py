"""What must hold for any input: deadlines, credit, batches, patterns, and the frames between processes."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from callboard.runtime import deadlines as deadlines_module
from callboard.runtime.actor import Actor, NoConfig, handler, spec_of
from callboard.runtime.batches import MAX_PARTS, Batch
from callboard.runtime.cell import Cell
from callboard.runtime.channels import RECEIVER_LEASE_S, WINDOW, Channel, Ledger
from callboard.runtime.deadlines import TICK_S, DeadlineWheel
from callboard.runtime.deliveries import Told
from callboard.runtime.errors import MailboxFull
from callboard.runtime.frames import Start, Stop, pack, parse_stop
from callboard.runtime.messages import answers
from callboard.runtime.node import Node
from callboard.runtime.supervision import Restart
from callboard.runtime.topics import matches
from callboard.schemas.base import Message, Request, StreamRequest
from callboard.schemas.wire import Envelope, Frame, Mark, Op

# Deadlines


class Clock:
    """A clock and an event loop's timers, both moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def monotonic(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        self._count += 1
        heapq.heappush(self._timers, (self.now + delay, self._count, callback))
        return Timer()

    def advance(self, seconds: float) -> None:
        """Time passes, and timers run at their times."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, callback = heapq.heappop(self._timers)
            self.now = max(self.now, at)
            callback()
        self.now = end

    def hold_up(self, seconds: float) -> None:
        """Time passes while the loop runs something else: timers are late."""
        self.now += seconds

    @property
    def idle(self) -> bool:
        return not self._timers


class Timer:
    def cancel(self) -> None: ...


class Entry:
    def __init__(self, clock: Clock, due: float) -> None:
        self.slot: set[Any] | None = None
        self.due = due
        self.expired_at: float | None = None
        self._clock = clock

    def expire(self) -> None:
        assert self.expired_at is None
        self.expired_at = self._clock.now


class DeadlineMachine(RuleBasedStateMachine):
    """Entries come, go and expire while time passes, and the loop is held up now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.usual = 1.0
        self.wheel = DeadlineWheel(self.clock, self.usual)  # type: ignore[arg-type]
        self.entries: list[Entry] = []
        self.held_up = 0.0
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(deadlines_module, "monotonic", self.clock.monotonic)

    def teardown(self) -> None:
        self.clock.advance(60)
        assert all(entry.expired_at is not None for entry in self.entries)
        assert len(self.wheel) == 0
        self.clock.advance(60)
        assert self.clock.idle
        self.patch.undo()

    @rule(seconds=st.floats(0, 20))
    def add(self, seconds: float) -> None:
        entry = Entry(self.clock, self.clock.now + seconds)
        self.wheel.add(entry, seconds)
        self.entries.append(entry)

    @rule()
    def add_usual(self) -> None:
        entry = Entry(self.clock, self.clock.now + self.usual)
        if self.wheel.usual is None:
            self.wheel.add(entry, self.usual)
        else:
            entry.slot = self.wheel.usual
            self.wheel.usual.add(entry)
        self.entries.append(entry)

    @rule()
    def add_for_ever(self) -> None:
        entry = Entry(self.clock, float("inf"))
        self.wheel.add(entry, float("inf"))
        assert entry.slot is None

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        waiting = [entry for entry in self.entries if entry.expired_at is None]
        if waiting:
            entry = data.draw(st.sampled_from(waiting))
            self.wheel.discard(entry)
            self.entries.remove(entry)

    @rule(seconds=st.floats(0, 3))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.floats(0, 3))
    def hold_up(self, seconds: float) -> None:
        self.clock.hold_up(seconds)
        self.held_up += seconds

    @invariant()
    def nobody_is_early_and_nobody_late(self) -> None:
        for entry in self.entries:
            if entry.expired_at is not None:
                assert entry.expired_at >= entry.due - 1e-6
                assert entry.expired_at <= entry.due + 3 * TICK_S + self.held_up + 1e-6


TestDeadlines = DeadlineMachine.TestCase


def test_an_entry_that_fails_to_expire_keeps_nobody_else_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(deadlines_module, "monotonic", clock.monotonic)
    wheel = DeadlineWheel(clock)  # type: ignore[arg-type]

    class Broken(Entry):
        def expire(self) -> None:
            raise RuntimeError("broken")

    good = [Entry(clock, 0) for _ in range(3)]
    for entry in (good[0], Broken(clock, 0), good[1]):
        wheel.add(entry, 0.1)
    wheel.add(good[2], 0.2)
    clock.advance(1)
    assert all(entry.expired_at is not None for entry in good)


# Credit

SENDERS = ("a", "b", "c")


class Note(Message, frozen=True, tag="invariants.note"): ...


class Idle(Actor[NoConfig]):
    mailbox_size = 64

    @handler
    async def note(self, message: Note) -> None: ...


class Roomy(Idle):
    mailbox_size = 5000


class CreditMachine(RuleBasedStateMachine):
    """Senders ask for credit, spend it, let it lapse and die; the actor handles what came; foreign messages come."""

    senders = st.sampled_from(SENDERS)
    kind: type[Idle] = Idle

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        node = Node("n")
        node.loop = self.loop
        self.cell = Cell(node, "idle", self.kind, NoConfig(), Restart.PERMANENT, node)  # type: ignore[arg-type]
        self.ledger = Ledger(self.cell)
        links: Any = SimpleNamespace(node=node, bus=SimpleNamespace(max_payload=1 << 20))
        self.channels = {sender: Channel("idle", links) for sender in SENDERS}
        self.asking: set[str] = set()
        self.now = 0.0

    def teardown(self) -> None:
        self.ledger.reclaim(self.now + RECEIVER_LEASE_S + 1)
        assert self.cell.held == 0
        self.loop.close()

    @rule(sender=senders)
    def ask_for_credit(self, sender: str) -> None:
        if sender not in self.asking:
            self.asking.add(sender)
            self.ledger.settle(sender, self.channels[sender].left(self.now), self.now)

    @rule(sender=senders)
    def answer(self, sender: str) -> None:
        if sender in self.asking and (more := self.ledger.grant(sender, self.now)):
            self.asking.remove(sender)
            self.channels[sender].grant(more, self.now)
            assert 0 < self.channels[sender].credit <= WINDOW

    @rule(sender=senders, count=st.integers(1, 200))
    def tell(self, sender: str, count: int) -> None:
        for _ in range(count):
            if not self.channels[sender].take(self.now):
                break
            self.ledger.spend(sender, 1)
            self.cell.put(Told(Note(), sender, self.cell))  # what has credit finds room, whatever else came

    @rule()
    def foreign_message(self) -> None:
        try:
            self.cell.put(Told(Note(), "", self.cell))
        except MailboxFull:
            assert self.occupied() >= self.cell.capacity

    @rule(count=st.integers(1, 200))
    def handle(self, count: int) -> None:
        for _ in range(min(count, len(self.cell.inbox))):
            self.cell.inbox.popleft()

    @rule(sender=senders, lie=st.integers(-5, 10**9))
    def lie(self, sender: str, lie: int) -> None:
        self.ledger.settle(sender, lie, self.now)
        self.channels[sender].reset()

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.ledger.reclaim(self.now)

    @rule()
    def lose_the_bus(self) -> None:
        self.ledger.clear()
        self.asking.clear()
        for channel in self.channels.values():
            channel.reset()
        assert self.cell.held == 0

    def occupied(self) -> int:
        return len(self.cell.inbox) + self.cell.held

    @invariant()
    def no_more_is_promised_than_there_is_room_for(self) -> None:
        assert self.cell.held == self.ledger.promised >= 0
        assert self.occupied() <= self.cell.capacity


class RoomyCreditMachine(CreditMachine):
    kind = Roomy


TestCredit = CreditMachine.TestCase
TestCreditOfALargeMailbox = RoomyCreditMachine.TestCase


# Batches


@given(st.lists(st.binary(min_size=0, max_size=40), max_size=300), st.integers(1, 200))
def test_batches_keep_every_part_in_order_and_are_bounded(payloads: list[bytes], max_bytes: int) -> None:
    loop = asyncio.new_event_loop()
    sent: list[tuple[int, list[bytes]]] = []

    def send(first: int, tail: bytes) -> None:
        head = msgspec.msgpack.encode(Frame[None](int(Mark.ITEM), first))
        frame = msgspec.msgpack.decode(head[:-1] + tail, type=Frame[bytes])
        sent.append((frame.seq, list(frame.batch)))

    batch = Batch(loop, send, max_bytes)
    for payload in payloads:
        batch.add(msgspec.msgpack.encode(payload))
    batch.flush()
    loop.close()
    assert [part for _, parts in sent for part in parts] == payloads
    expected = 0
    for first, parts in sent:
        assert first == expected
        assert 1 <= len(parts) <= MAX_PARTS
        assert len(parts) == 1 or sum(len(msgspec.msgpack.encode(part)) for part in parts) <= max_bytes
        expected += len(parts)


# Patterns

tokens = st.text("abc", min_size=1, max_size=2)
subjects = st.lists(tokens, min_size=1, max_size=5)


@given(subjects, st.data())
def test_a_subject_matches_every_pattern_made_from_it(subject: list[str], data: st.DataObject) -> None:
    pattern = [data.draw(st.sampled_from([token, "*"])) for token in subject]
    assert matches(pattern, subject)
    cut = data.draw(st.integers(0, len(subject) - 1))
    assert matches([*pattern[:cut], ">"], subject)
    assert not matches([*pattern, ">"], subject)
    assert not matches([*pattern, "*"], subject)
    assert not matches(pattern, [*subject, "x"])


@given(subjects, subjects)
def test_without_wildcards_only_the_same_subject_matches(pattern: list[str], subject: list[str]) -> None:
    assert matches(pattern, subject) == (pattern == subject)


# The wire


@given(st.integers(0, 9), st.integers(0, 2**40), st.integers(0, 2**31), st.text(max_size=50))
def test_an_envelope_survives_the_wire(op: int, timeout_ms: int, credit: int, sender: str) -> None:
    envelope = Envelope(op, Note(), timeout_ms, credit, sender)
    data = msgspec.msgpack.encode(envelope)
    assert msgspec.msgpack.decode(data, type=Envelope[Note]) == envelope
    assert data[:1] != b"{"
    assert data[-1:] == b"\x90"  # an empty array, which a batch replaces


def test_what_an_older_node_does_not_know_is_ignored_by_it() -> None:
    longer = msgspec.msgpack.encode([int(Op.TELL), {"type": "invariants.note", "new": 1}, 0, 0, "", "", [], "more"])
    assert msgspec.msgpack.decode(longer, type=Envelope[Note]).body == Note()


@given(st.binary(max_size=60))
def test_no_bytes_are_mistaken_for_an_order_to_stop(data: bytes) -> None:
    stop = parse_stop(data)
    assert stop is None or isinstance(stop.drain_timeout, float)


def test_an_order_to_stop_survives_the_pipe() -> None:
    assert parse_stop(pack(Stop(2.5))) == Stop(2.5)
    assert parse_stop(pack(Start("a", "b", "c", "d", "e"))) is None


# Reading classes


class Base(Request[Note], frozen=True, tag="invariants.base"): ...


class Derived(Base, frozen=True, tag="invariants.derived"): ...


class Follow(StreamRequest[Note, None], frozen=True, tag="invariants.follow"): ...


def test_a_request_names_its_answers_also_where_it_is_derived() -> None:
    assert answers(Derived).result is Note
    assert answers(Derived).item is None
    assert answers(Follow)[:2] == (Note, type(None))
    with pytest.raises(TypeError, match="no request"):
        answers(Note)


def test_a_handler_must_say_what_it_takes() -> None:
    class Untyped(Actor[NoConfig]):
        @handler
        async def anything(self, message: Any) -> None: ...

    with pytest.raises(TypeError, match="annotated"):
        spec_of(Untyped)


def test_two_messages_of_one_actor_may_not_share_a_tag() -> None:
    class Twin(Message, frozen=True, tag="invariants.note"): ...

    class Twins(Actor[NoConfig]):
        @handler
        async def one(self, message: Note) -> None: ...

        @handler
        async def other(self, message: Twin) -> None: ...

    Twins.other.__annotations__["message"] = Twin
    with pytest.raises(TypeError, match="same tag"):
        spec_of(Twins)
