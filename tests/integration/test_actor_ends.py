"""What watches, links and stops promise, each on both paths; and that nothing is left over, whatever was asked."""

from __future__ import annotations

import random

import anyio
import pytest
from company import (
    DIARY,
    LIVING,
    Add,
    Clerk,
    ClerkConfig,
    Count,
    Fail,
    FailBeside,
    GetSeen,
    Note,
    Numbers,
    NumbersBeside,
    Open,
    SmallClerk,
    Unknown,
    Unwatch,
    Wait,
    WaitBeside,
    Watch,
)
from two_paths import Company, Eventually, company

from callboard.runtime.calls import GrantCall
from callboard.runtime.cell import Cell
from callboard.runtime.errors import (
    ActorStopped,
    DeadlineExceeded,
    HandlerFailed,
    MailboxFull,
    NoSuchActor,
    NotUnderstood,
    RequestInvalid,
)
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.runtime import Ended

__all__ = ["company"]  # a fixture
pytestmark = pytest.mark.anyio


# Watching and linking


async def test_a_watcher_is_told_of_a_stop_once(company: Company) -> None:
    await company.clerk("watched")
    watcher = await _watcher(company)
    await watcher.ask(Watch("watched"))
    await watcher.ask(Watch("watched"))
    await watcher.ask(Add(1))
    await _settled(company, "watched", watched=True)
    await company.home.stop("watched")
    await DIARY.has("watcher saw watched stopped")
    (event,) = (await watcher.ask(GetSeen())).events
    assert (event.address, event.reason, event.restarting) == ("watched", Ended.STOPPED, False)


async def test_a_watcher_is_told_of_a_crash_and_whether_it_comes_back(company: Company) -> None:
    watcher = await _watcher(company)
    for restart, name in ((Restart.PERMANENT, "back"), (Restart.TEMPORARY, "gone")):
        watched = await company.clerk(name, restart=restart)
        await watcher.ask(Watch(name))
        await _settled(company, name, watched=True)
        with pytest.raises(HandlerFailed):
            await watched.ask(Fail())
        await DIARY.has(f"watcher saw {name} crashed")
    back, gone = (await watcher.ask(GetSeen())).events
    assert (back.restarting, gone.restarting) == (True, False)
    assert back.error is not None
    assert "one over nothing" in back.error.message


async def test_watching_who_is_not_there_is_answered_at_once(company: Company) -> None:
    watcher = await _watcher(company)
    for address in ("nobody", "watcher.nobody"):
        await watcher.ask(Watch(address))
        await DIARY.has(f"watcher saw {address} not_there")


async def test_who_no_longer_watches_is_not_told(company: Company) -> None:
    await company.clerk("watched")
    watcher = await _watcher(company)
    await watcher.ask(Watch("watched"))
    await _settled(company, "watched", watched=True)
    await watcher.ask(Unwatch("watched"))
    await _settled(company, "watched", watched=False)
    await company.home.stop("watched")
    await watcher.ask(Watch("watched"))
    await DIARY.has("watcher saw watched not_there")
    assert len((await watcher.ask(GetSeen())).events) == 1


async def test_the_end_of_a_watcher_is_the_end_of_its_watches(company: Company) -> None:
    await company.clerk("watched")
    watcher = await _watcher(company)
    await watcher.ask(Watch("watched"))
    await _settled(company, "watched", watched=True)
    with pytest.raises(HandlerFailed):
        await watcher.ask(Fail())
    await watcher.ask(Add(1))
    await _settled(company, "watched", watched=False)


@pytest.mark.parametrize("first", ["linker", "linked"])
async def test_linked_actors_crash_together_in_both_directions(company: Company, first: str) -> None:
    await company.clerk("linked")
    linker = await _watcher(company, "linker")
    await linker.ask(Watch("linked", link=True))
    await _settled(company, "linked", watched=True)
    if company.away is not company.home:
        await _settled(company, "linker", watched=True)
    with pytest.raises(HandlerFailed):
        await company.away.actor(first).ask(Fail())
    for name in ("linked", "linker"):
        await DIARY.has(f"{name} started", 2)
    assert await company.away.actor("linked").ask(Add(1)) == Count(1)
    assert await company.away.actor("linker").ask(Add(1)) == Count(1)


async def test_a_linked_actor_outlives_a_normal_end(company: Company) -> None:
    await company.clerk("linked")
    linker = await _watcher(company, "linker")
    await linker.ask(Watch("linked", link=True))
    await _settled(company, "linked", watched=True)
    await company.home.stop("linked")
    await DIARY.has("linker saw linked stopped")
    assert DIARY.entries.count("linker started") == 1


async def _watcher(company: Company, name: str = "watcher") -> Ref:
    """A clerk that lives away from the others, where there is an away."""
    return await company.away.spawn(Clerk, ClerkConfig(name), name=name)


async def _settled(company: Company, address: str, *, watched: bool) -> None:
    """A watch over the bus takes effect when it arrives."""
    for node in (company.home, company.away):
        child = node.actors.get(address)
        while child is not None and bool(child.watchers) is not watched:
            await anyio.sleep(0.01)


# The end


async def test_a_stop_handles_what_waits_first(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    answers: list[Count] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clerk.ask, Wait())
        await DIARY.has("clerk wait began")

        async def add() -> None:
            answers.append(await clerk.ask(Add(1)))

        for _ in range(5):
            tasks.start_soon(add)
        await eventually(lambda: company.home.actors["clerk"].info().mailbox == 5)
        cell = company.home.actors["clerk"]
        tasks.start_soon(company.home.stop, "clerk", 5.0)
        await eventually(lambda: cell.closed)
        with pytest.raises(ActorStopped):
            await clerk.ask(Add(1))
        LIVING["clerk"].gate.set()
    assert sorted(answer.n for answer in answers) == [1, 2, 3, 4, 5]
    with pytest.raises(NoSuchActor):
        await clerk.ask(Add(1))


async def test_a_stop_hands_back_what_it_has_no_time_for(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    errors: list[str] = []

    async def ask(request: Wait | Add) -> None:
        with pytest.raises(ActorStopped) as caught:
            await clerk.ask(request)
        errors.append(caught.value.message)

    async with company.away.listen("dead.clerk", Note) as dead, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, Wait())
        await DIARY.has("clerk wait began")
        for _ in range(3):
            tasks.start_soon(ask, Add(1))
        await clerk.tell(Note("never read"))
        await eventually(lambda: len(company.home.actors["clerk"].inbox) == 4)  # type: ignore[attr-defined]
        await company.home.stop("clerk", 0.1)
        assert (await anext(dead))[1] == Note("never read")
    assert len(errors) == 4
    assert DIARY.entries[-2:] == ["clerk wait CancelledError", "clerk stopped"]


async def test_a_stop_lets_concurrent_handlers_finish(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    cell = company.home.actors["clerk"]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clerk.ask, WaitBeside())
        await DIARY.has("clerk wait began")
        tasks.start_soon(company.home.stop, "clerk", 5.0)
        await eventually(lambda: cell.closed)
        LIVING["clerk"].gate.set()
    assert DIARY.entries[-2:] == ["clerk wait finished", "clerk stopped"]


async def test_a_stop_whose_caller_gives_up_is_carried_through(company: Company, eventually: Eventually) -> None:
    clerk = await company.clerk()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(clerk.ask, Wait())
        await DIARY.has("clerk wait began")
        with anyio.move_on_after(0.05):
            await company.home.stop("clerk", 5.0)
        LIVING["clerk"].gate.set()
    await eventually(lambda: "clerk" not in company.home.actors)
    await company.clerk()
    assert await clerk.ask(Add(1)) == Count(1)


# All at once


async def test_after_any_mix_of_requests_nothing_is_left_over(company: Company, eventually: Eventually) -> None:
    dice = random.Random(company.home is company.away)
    clerk = await company.clerk(kind=SmallClerk)
    told: list[str] = []
    odd: list[BaseException] = []

    async def one(index: int) -> None:
        try:
            match dice.randrange(9):
                case 0 | 1:
                    await clerk.ask(Add(1), timeout=dice.choice([None, 0.001]))
                case 2:
                    await clerk.ask(dice.choice([Wait(), WaitBeside()]), timeout=dice.random() / 20)
                case 3:
                    with anyio.move_on_after(dice.random() / 20):
                        await clerk.ask(dice.choice([Wait(), WaitBeside(), Add(1)]))
                case 4:
                    async with clerk.stream(dice.choice([Numbers(600), NumbersBeside(600)])) as numbers:
                        for _ in range(dice.randrange(600)):
                            await anext(numbers)
                case 5:
                    with anyio.move_on_after(dice.random() / 20):
                        async for _ in clerk.stream(Numbers(20, wait_at=dice.randrange(20)), timeout=0.05):
                            pass
                case 6:
                    await clerk.ask(dice.choice([Fail(typed=True), FailBeside(typed=True), Unknown()]))
                case 7:
                    await clerk.tell(Note(str(index)), timeout=dice.choice([0.0, 0.05, 10.0]))
                    told.append(str(index))
                case 8:
                    await clerk.tell(Open(), timeout=0.05)
        except (MailboxFull, DeadlineExceeded, RequestInvalid, NotUnderstood):
            pass
        except BaseException as error:
            odd.append(error)
            raise

    async def several(first: int) -> None:
        for index in range(first, first + 40):
            await one(index)
            LIVING["clerk"].gate = anyio.Event()

    async with anyio.create_task_group() as tasks:
        for first in range(0, 400, 40):
            tasks.start_soon(several, first)
    assert not odd
    assert DIARY.entries.count("clerk started") == 1
    noted = LIVING["clerk"].noted
    await eventually(lambda: len(noted) >= len(told))
    assert sorted(text for text in noted if text.isdigit()) == sorted(told)
    cell = company.home.actors["clerk"]
    assert isinstance(cell, Cell)
    assert not cell.dropped
    await eventually(lambda: not cell.inbox and not cell._running and not cell.current)
    for node in {company.home, company.away}:
        assert node.links is not None
        inbound = node.links.inbound
        promised = sum(ledger.promised for ledger in inbound._ledgers.values())
        await eventually(lambda inbound=inbound: not inbound._asks and not inbound._streams)
        if node is company.home:
            assert cell.held == promised
        assert not [call for call in node.links.conversations.values() if not isinstance(call, GrantCall)]
