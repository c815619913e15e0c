"""Supervision on a node of its own, without a bus: who is restarted, how often, in which order, and when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.actor import Actor, handler
from callboard.runtime.cell import Cell
from callboard.runtime.errors import ActorStopped, HandlerFailed, NameTaken, NoSuchActor, RestartLimit
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart, RestartBudget, Strategy, Supervision
from callboard.schemas.base import Message, Request
from callboard.schemas.runtime import Terminated

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]


class Done(Message, frozen=True, tag="supervision.done"): ...


class Crash(Request[Done], frozen=True, tag="supervision.crash"): ...


class Finish(Request[Done], frozen=True, tag="supervision.finish"): ...


class Ping(Request[Done], frozen=True, tag="supervision.ping"): ...


class Block(Request[Done], frozen=True, tag="supervision.block"):
    """Waits for ever, and takes no notice of being cancelled if `stubborn`."""

    stubborn: bool = False


class Lose(Request[Done], frozen=True, tag="supervision.lose"):
    """Wait for a task of one's own that is cancelled."""


class WorkerConfig(msgspec.Struct, frozen=True):
    name: str = "worker"
    children: tuple[str, ...] = ()
    restart: str = "permanent"
    strategy: str = "one_for_one"
    max_restarts: int = 50


@dataclass
class Story:
    """What the actors of a test lived through, and what shall go wrong."""

    lines: list[str] = field(default_factory=list)
    fails_to_start: dict[str, int] = field(default_factory=dict)
    slow_start: anyio.Event | None = None
    released: anyio.Event = field(default_factory=anyio.Event)

    def of(self, what: str) -> list[str]:
        return [name for name, _, did in (line.partition(" ") for line in self.lines) if did == what]


STORY = Story()


class Worker(Actor[WorkerConfig]):
    def __init__(self) -> None:
        self.supervision = Supervision(
            Strategy(self.config.strategy), max_restarts=self.config.max_restarts, backoff_s=0.0
        )

    async def started(self) -> None:
        name = self.config.name
        if STORY.fails_to_start.get(name, 0):
            STORY.fails_to_start[name] -= 1
            STORY.lines.append(f"{name} failed")
            raise ValueError(f"{name} cannot start")
        if STORY.slow_start is not None:
            STORY.lines.append(f"{name} starting")
            await STORY.slow_start.wait()
        STORY.lines.append(f"{name} started")
        for child in self.config.children:
            await self.spawn(Worker, WorkerConfig(child), name=child, restart=Restart(self.config.restart))

    async def stopped(self) -> None:
        STORY.lines.append(f"{self.config.name} stopped")

    @handler
    async def crash(self, message: Crash) -> Done:
        raise ValueError("as asked")

    @handler
    async def leave(self, message: Finish) -> Done:
        self.finish()
        return Done()

    @handler
    async def ping(self, message: Ping) -> Done:
        return Done()

    @handler
    async def block(self, message: Block) -> Done:
        STORY.lines.append(f"{self.config.name} blocked")
        while True:
            try:
                await STORY.released.wait()
                return Done()
            except asyncio.CancelledError:
                if not message.stubborn:
                    raise

    @handler
    async def lose(self, message: Lose) -> Done:
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        await lost
        return Done()


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    global STORY
    STORY = Story()
    async with Node(drain_timeout=1.0) as node:
        yield node


async def family(node: Node, **options: object) -> Ref:
    """A parent with the children a, b and c."""
    config = msgspec.convert({"name": "parent", "children": ["a", "b", "c"], **options}, WorkerConfig)
    return await node.spawn(Worker, config, name="parent")


async def crash(ref: Ref) -> None:
    with pytest.raises(HandlerFailed):
        await ref.ask(Crash())


# Who is restarted


@pytest.mark.parametrize(
    ("strategy", "restarted"), [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")]
)
async def test_a_crash_restarts_those_that_the_strategy_names(node: Node, strategy: str, restarted: str) -> None:
    await family(node, strategy=strategy)
    STORY.lines.clear()
    await crash(node.actor("parent.b"))
    for name in "abc":
        await node.actor(f"parent.{name}").ask(Ping())
    assert STORY.of("started") == list(restarted)
    assert sorted(STORY.of("stopped")) == list(restarted)
    others = [name for name in reversed(restarted) if name != "b"]
    assert [name for name in STORY.of("stopped") if name != "b"] == others
    assert {name: node.actors[f"parent.{name}"].restarts for name in "abc"} == {
        name: int(name in restarted) for name in "abc"
    }


async def test_messages_to_a_sibling_wait_out_the_restart(node: Node, eventually: Eventually) -> None:
    await family(node, strategy="one_for_all")
    async with anyio.create_task_group() as askers:

        async def block() -> None:
            with pytest.raises(ActorStopped):
                await node.actor("parent.a").ask(Block())

        askers.start_soon(block)
        await eventually(lambda: STORY.of("blocked") == ["a"])
        for _ in range(5):
            askers.start_soon(node.actor("parent.a").ask, Ping())
        await eventually(lambda: node.actors["parent.a"].info().mailbox == 5)
        await crash(node.actor("parent.c"))
    await node.actor("parent.c").ask(Ping())
    assert STORY.of("started") == ["parent", "a", "b", "c", "a", "b", "c"]


async def test_two_that_crash_together_are_restarted_together_once(node: Node) -> None:
    await family(node, strategy="one_for_all")
    async with anyio.create_task_group() as askers:
        askers.start_soon(crash, node.actor("parent.a"))
        askers.start_soon(crash, node.actor("parent.b"))
    for name in "abc":
        await node.actor(f"parent.{name}").ask(Ping())
    assert [node.actors[f"parent.{name}"].restarts for name in "abc"] == [1, 1, 1]


async def test_a_sibling_that_ignores_its_cancel_does_not_come_back_twice(
    node: Node, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("callboard.runtime.cell.CANCEL_GRACE_S", 0.1)
    node.drain_timeout = 0.1
    await family(node, strategy="one_for_all")
    async with anyio.create_task_group() as askers:
        askers.start_soon(node.actor("parent.a").ask, Block(stubborn=True))
        await eventually(lambda: STORY.of("blocked") == ["a"])
        await crash(node.actor("parent.b"))
        await node.actor("parent.a").ask(Ping())
        STORY.released.set()
    await node.actor("parent.a").ask(Ping())
    assert STORY.of("started") == ["parent", "a", "b", "c", "a", "b", "c"]


@pytest.mark.parametrize(
    ("restart", "after_crash", "after_end"),
    [("permanent", True, True), ("transient", True, False), ("temporary", False, False)],
)
async def test_the_restart_kind_says_which_ends_are_followed_by_a_new_life(
    node: Node, restart: str, after_crash: bool, after_end: bool
) -> None:
    await family(node, restart=restart)
    await crash(node.actor("parent.a"))
    await node.actor("parent.b").ask(Finish())
    for name, lives in (("a", after_crash), ("b", after_end), ("c", True)):
        ref = node.actor(f"parent.{name}")
        if lives:
            await ref.ask(Ping())
        else:
            with pytest.raises((NoSuchActor, ActorStopped)):
                await ref.ask(Ping())
    assert len(STORY.of("started")) == 4 + after_crash + after_end


async def test_temporary_siblings_end_for_good_in_a_group_restart(node: Node) -> None:
    parent = await node.spawn(Worker, WorkerConfig("parent", strategy="one_for_all"), name="parent")
    cell = node.actors[str(parent)]
    assert isinstance(cell, Cell)
    for name, restart in (("a", Restart.PERMANENT), ("b", Restart.TEMPORARY), ("c", Restart.PERMANENT)):
        await cell.spawn(Worker, WorkerConfig(name), name=name, where=None, restart=restart)
    await crash(node.actor("parent.c"))
    await node.actor("parent.c").ask(Ping())
    assert sorted(node.actors) == ["parent", "parent.a", "parent.c"]


async def test_waiting_for_something_that_is_cancelled_is_a_crash(node: Node) -> None:
    worker = await node.spawn(Worker, name="worker")
    with pytest.raises(HandlerFailed, match="cancelled"):
        await worker.ask(Lose())
    await worker.ask(Ping())
    assert node.actors["worker"].restarts == 1


async def test_a_background_task_that_raises_crashes_its_actor(node: Node) -> None:
    class Background(Worker):
        @handler
        async def ping(self, message: Ping) -> Done:
            self.start_soon(self._raise)
            return Done()

        async def _raise(self) -> None:
            raise ValueError("in the background")

    ref = await node.spawn(Background, name="background")
    await ref.ask(Ping())
    await ref.ask(Ping())
    await ref.ask(Ping())
    assert node.actors["background"].restarts >= 1


# How often


async def test_too_many_restarts_of_a_root_end_it_and_nobody_else(node: Node, eventually: Eventually) -> None:
    ended: list[Terminated] = []
    node.on_terminated = ended.append
    node._roots._policy = Supervision(max_restarts=3, backoff_s=0.0)
    bystander = await node.spawn(Worker, name="bystander")
    ref = await node.spawn(Worker, name="worker")
    for _ in range(3):
        await crash(ref)
    await eventually(lambda: node.actors["worker"].restarts == 3)
    node.watch_root("worker")
    await crash(ref)
    await eventually(lambda: bool(ended))
    assert ended[0].error is not None
    assert (ended[0].error.code, ended[0].restarting) == (RestartLimit.code, False)
    assert "as asked" in ended[0].error.message
    with pytest.raises(NoSuchActor):
        await ref.ask(Ping())
    await bystander.ask(Ping())
    await node.spawn(Worker, name="worker")


async def test_too_many_restarts_of_a_child_crash_its_parent(node: Node, eventually: Eventually) -> None:
    await family(node, max_restarts=2)
    for name in "aba":
        await crash(node.actor(f"parent.{name}"))
    await eventually(lambda: node.actors["parent"].restarts == 1 and node.actors["parent"].state == "running")
    for name in "abc":
        await node.actor(f"parent.{name}").ask(Ping())
    assert STORY.of("started").count("parent") == 2


async def test_a_restart_storm_ends(node: Node, eventually: Eventually) -> None:
    node._roots._policy = Supervision(max_restarts=4, backoff_s=0.0)
    await family(node, max_restarts=3)
    STORY.fails_to_start["b"] = 10_000
    await crash(node.actor("parent.b"))
    await eventually(lambda: not node.actors)
    assert STORY.of("failed").count("b") <= 4 * 5
    assert STORY.of("started").count("c") == STORY.of("stopped").count("c")


def test_the_budget_is_counted_over_a_sliding_period() -> None:
    budget = RestartBudget(Supervision(max_restarts=3, period_s=10.0, backoff_s=1.0, backoff_max_s=3.0))
    assert budget.take(0.0) == 0.0
    second, third = budget.take(1.0), budget.take(2.0)
    assert second is not None
    assert 0.75 <= second <= 1.0
    assert third is not None
    assert 1.5 <= third <= 2.0
    assert budget.take(9.9) is None
    fourth = budget.take(10.5)
    assert fourth is not None
    assert 1.5 <= fourth <= 2.0
    assert budget.take(100.0) == 0.0


@given(
    st.lists(st.floats(0, 20), max_size=60),
    st.integers(0, 8),
    st.floats(0.1, 30),
    st.floats(0, 2),
    st.floats(0, 5),
)
def test_no_period_has_more_restarts_than_allowed(
    gaps: list[float], max_restarts: int, period: float, backoff: float, longest: float
) -> None:
    policy = Supervision(max_restarts=max_restarts, period_s=period, backoff_s=backoff, backoff_max_s=longest)
    budget = RestartBudget(policy)
    now, granted = 0.0, list[float]()
    for gap in gaps:
        now += gap
        delay = budget.take(now)
        if delay is not None:
            assert 0 <= delay <= longest
            granted.append(now)
        assert sum(now - time <= period for time in granted) <= max_restarts


# Beginning and ending


async def test_a_failed_first_start_is_the_spawners_error_and_leaves_nothing(node: Node) -> None:
    STORY.fails_to_start["worker"] = 1
    with pytest.raises(ValueError, match="cannot start"):
        await node.spawn(Worker, name="worker")
    assert not node.actors
    ref = await node.spawn(Worker, name="worker")
    await ref.ask(Ping())


async def test_a_parent_whose_child_fails_to_start_leaves_nothing(node: Node) -> None:
    STORY.fails_to_start["b"] = 1
    with pytest.raises(ValueError, match="cannot start"):
        await family(node)
    assert not node.actors
    assert STORY.lines == ["parent started", "a started", "b failed", "b stopped", "a stopped", "parent stopped"]


async def test_a_failed_start_at_a_restart_counts_as_a_crash(node: Node, eventually: Eventually) -> None:
    ref = await node.spawn(Worker, name="worker")
    STORY.fails_to_start["worker"] = 2
    await crash(ref)
    await ref.ask(Ping())
    assert node.actors["worker"].restarts == 3


async def test_children_end_before_their_parents_and_the_last_first(node: Node) -> None:
    await family(node)
    await node.stop("parent")
    assert STORY.of("stopped") == ["c", "b", "a", "parent"]


async def test_a_node_ends_its_roots_the_last_first() -> None:
    STORY.lines.clear()
    async with Node() as node:
        for name in ("first", "second"):
            await node.spawn(Worker, WorkerConfig(name), name=name)
    assert STORY.of("stopped") == ["second", "first"]


async def test_a_spawn_that_is_cancelled_leaves_nothing(node: Node, eventually: Eventually) -> None:
    STORY.slow_start = anyio.Event()
    with anyio.move_on_after(0.05):
        await node.spawn(Worker, name="worker")
    assert not node.actors
    await eventually(lambda: STORY.of("stopped") == ["worker"])
    STORY.slow_start = None
    await node.spawn(Worker, name="worker")


async def test_a_stop_during_a_restart_is_for_good(node: Node, eventually: Eventually) -> None:
    node._roots._policy = Supervision(max_restarts=9, backoff_s=0.0)
    ref = await node.spawn(Worker, name="worker")
    STORY.slow_start = anyio.Event()
    await crash(ref)
    await eventually(lambda: STORY.of("starting") == ["worker"])
    await node.stop("worker", 0.1)
    assert "worker" not in node.actors
    STORY.slow_start = None
    ref = await node.spawn(Worker, name="worker")
    await ref.ask(Ping())
    assert STORY.of("started") == ["worker", "worker"]


async def test_a_stop_during_the_backoff_is_for_good(node: Node, eventually: Eventually) -> None:
    node._roots._policy = Supervision(max_restarts=9, backoff_s=60.0, backoff_max_s=60.0)
    ref = await node.spawn(Worker, name="worker")
    await crash(ref)
    await ref.ask(Ping())
    await crash(ref)
    await eventually(lambda: node.actors["worker"].state == "crashed")
    other = await node.spawn(Worker, WorkerConfig("other"), name="other")
    await crash(other)
    await other.ask(Ping())  # its restart does not wait for the backoff of another
    await node.stop("worker", 1.0)
    await node.spawn(Worker, name="worker")
    assert STORY.of("started") == ["worker", "worker", "other", "other", "worker"]


async def test_an_ending_actor_starts_no_children(node: Node) -> None:
    refusals: list[str] = []

    class Late(Worker):
        async def stopped(self) -> None:
            try:
                await self.spawn(Worker, name="late")
            except ActorStopped as error:
                refusals.append(error.message)

    await node.spawn(Late, name="parent")
    await node.stop("parent")
    assert len(refusals) == 1
    assert not node.actors


async def test_a_child_has_a_name_of_its_own(node: Node) -> None:
    await family(node)
    cell = node.actors["parent"]
    assert isinstance(cell, Cell)
    with pytest.raises(NameTaken):
        await cell.spawn(Worker, None, name="a", where=None, restart=Restart.PERMANENT)
    await node.actor("parent.a").ask(Ping())


async def test_a_concurrent_handler_cancelled_before_its_first_step_gives_its_room_back(node: Node) -> None:
    class Beside(Worker):
        @handler(concurrent=True)
        async def ping(self, message: Ping) -> Done:
            await anyio.sleep_forever()
            return Done()

    ref = await node.spawn(Beside, name="worker")
    cell = node.actors["worker"]
    assert isinstance(cell, Cell)
    asking = asyncio.ensure_future(ref.ask(Ping()))
    while not cell.held:
        await asyncio.sleep(0)
    assert cell._running is not None
    for delivery in tuple(cell._running):
        delivery.abandon()
    with pytest.raises(ActorStopped):
        await asking
    assert cell.held == 0


async def test_an_actor_that_tells_itself_for_ever_leaves_others_their_turn(node: Node) -> None:
    class Restless(Worker):
        @handler
        async def leave(self, message: Finish) -> Done:
            await self.ref.tell(message)
            return Done()

    ref = await node.spawn(Restless, name="restless")
    await ref.tell(Finish())
    with anyio.fail_after(15):
        await ref.ask(Ping())
    await node.stop("restless", 0.1)
