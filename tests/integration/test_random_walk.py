"""Random spawns, messages, kills and restarts over real nodes, processes and a real server, held against a model.

The model knows what was asked for and what came back; the promises that it checks are those of docs/reliability.md:
every ask ends in time in an answer or a documented error, nothing is counted twice, an address has one holder, a
permanent actor comes back, a watcher is told of each end once, and nothing is left open at the end.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import psutil
import pytest
from company import DIARY, THIS_FILE, Add, Clerk, ClerkConfig, Fail, GetSeen, NumbersBeside, Pid, Watch

from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import (
    ActorStopped,
    Cancelled,
    DeadlineExceeded,
    HandlerFailed,
    MailboxFull,
    NameTaken,
    NoSuchActor,
    RequestInvalid,
)
from callboard.runtime.node import Node
from callboard.runtime.placement import Here, Process
from callboard.runtime.refs import Ref
from callboard.runtime.supervision import Restart
from callboard.schemas.runtime import Terminated

pytestmark = pytest.mark.anyio

Eventually = Callable[[Callable[[], bool]], Awaitable[None]]

ASK_S = 5.0
# An ask may be late by the wheel's coarseness, and by a machine that does other things too.
LATE_S = 3.0
# What an ask of an actor that is killed, stopped and restarted meanwhile may end in.
EXPECTED = (ActorStopped, NoSuchActor, HandlerFailed, MailboxFull, Cancelled, DeadlineExceeded)
MAX_ACTORS = 10
MAX_PROCESSES = 3


@dataclass
class Life:
    """What the model knows of one address. `sent` bounds what its counter may show, over all its lives."""

    node: Node
    process: bool
    sent: int = 0
    spawned: bool = True
    crashes: int = 0


@dataclass
class Company:
    """The real nodes and the model beside them."""

    nodes: list[Node]
    random: random.Random
    lives: dict[str, Life] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    watched: Counter[str] = field(default_factory=Counter)
    number: int = 0

    def some(self) -> tuple[str, Life]:
        return self.random.choice(sorted(self.lives.items(), key=lambda pair: pair[0]))

    def ref(self, address: str) -> Ref:
        """From anywhere: the node that hosts it, or another."""
        return self.random.choice(self.nodes).actor(address)

    async def bounded(self, ref: Ref, request: Any) -> Any:
        """Ask, and hold the end against the promise: an answer or a documented error, in time."""
        loop = self.nodes[0].loop
        begun = loop.time()
        try:
            return await ref.ask(request, timeout=ASK_S)
        except EXPECTED as error:
            self.done[type(error).__name__] += 1
            return None
        finally:
            assert loop.time() - begun < ASK_S + LATE_S, f"{ref} kept {request} waiting"

    # What may happen

    async def spawn(self) -> None:
        processes = sum(life.process for life in self.lives.values())
        process = self.random.random() < 0.15 and processes < MAX_PROCESSES
        if len(self.lives) >= MAX_ACTORS:
            return
        self.number += 1
        name = f"actor-{self.number}"
        node = self.random.choice(self.nodes)
        where = Process(load=(THIS_FILE,)) if process else Here()
        kind: Any = "company:Clerk" if process else Clerk
        await node.spawn(kind, ClerkConfig(name), name=name, where=where)
        self.lives[name] = Life(node, process)

    async def spawn_again(self) -> None:
        """Of a process that was just killed the name is free on the bus until it is back, so those are left out."""
        name, life = self.some()
        if life.process:
            return
        node = self.random.choice(self.nodes)
        try:
            await node.spawn(Clerk, ClerkConfig(name), name=name)
        except NameTaken:
            self.done["taken"] += 1
        else:
            await node.stop(name, 1.0)
            assert name not in self.lives, f"two hold {name}"  # it was stopped just then

    async def ask(self) -> None:
        name, life = self.some()
        life.sent += 1
        answer = await self.bounded(self.ref(name), Add(1))
        if answer is not None:
            assert 1 <= answer.n <= life.sent, f"{name} counts {answer.n} of {life.sent}"
            self.done["answered"] += 1

    async def ask_many(self) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(self.random.randint(2, 20)):
                tasks.start_soon(self.ask)

    async def tell(self) -> None:
        name, life = self.some()
        count = self.random.randint(1, 20)
        ref = self.ref(name)
        for _ in range(count):
            life.sent += 1
            try:
                await ref.tell(Add(1))
            except EXPECTED as error:
                self.done[f"tell: {type(error).__name__}"] += 1

    async def give_up(self) -> None:
        name, life = self.some()
        life.sent += 1
        with anyio.move_on_after(self.random.choice((0, 0.001, 0.01))):
            await self.bounded(self.ref(name), Add(1))

    async def read(self) -> None:
        """A stream, to its end or left early: what comes is in order and without gaps."""
        name, _ = self.some()
        upto = self.random.choice((1, 10, 400))
        leave_after = self.random.choice((1, 5, math.inf))
        expected = 0
        try:
            async with self.ref(name).stream(NumbersBeside(upto), timeout=ASK_S) as numbers:
                async for number in numbers:
                    assert number.n == expected
                    expected += 1
                    if expected >= leave_after:
                        break
                else:
                    assert expected == upto
                    assert numbers.result.total == sum(range(upto))
                    self.done["streamed"] += 1
        except EXPECTED as error:
            self.done[f"stream: {type(error).__name__}"] += 1

    async def refuse(self) -> None:
        name, _ = self.some()
        with pytest.raises((RequestInvalid, *EXPECTED)):
            await self.ref(name).ask(Fail(typed=True), timeout=ASK_S)

    async def crash(self) -> None:
        name, life = self.some()
        if life.crashes < 3:  # its budget is five in thirty seconds
            life.crashes += 1
            await self.bounded(self.ref(name), Fail())

    async def kill(self) -> None:
        killable = [(name, life) for name, life in self.lives.items() if life.process and life.crashes < 3]
        if not killable:
            return
        name, life = self.random.choice(killable)
        pid = await self.bounded(self.ref(name), Pid())
        if pid is None:
            return
        life.crashes += 1
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(self.ask)
            if psutil.pid_exists(pid.n):
                os.kill(pid.n, signal.SIGKILL)
        self.done["killed"] += 1

    async def stop(self) -> None:
        name, life = self.some()
        if len(self.lives) > 3:
            del self.lives[name]
            await life.node.stop(name, 1.0)
            await self.is_gone(name)

    async def is_gone(self, name: str) -> None:
        """In a moment: a life that `spawn_again` began just when this one had ended is stopped at once."""
        for node in self.nodes:
            with anyio.fail_after(ASK_S):
                while await self.answers(node.actor(name)):
                    pass

    @staticmethod
    async def answers(ref: Ref) -> bool:
        try:
            await ref.ask(Pid(), timeout=ASK_S)
        except (NoSuchActor, ActorStopped):
            return False
        return True

    async def watch_one_end(self) -> None:
        """One watcher, one life, one end of a kind that chance picks: it is told once."""
        self.number += 1
        name, watcher = f"watched-{self.number}", f"watcher-{self.number}"
        host, far = self.random.sample(self.nodes, 2) if self.random.random() < 0.7 else [self.nodes[0]] * 2
        await host.spawn(Clerk, ClerkConfig(name), name=name, restart=self.random.choice(list(Restart)))
        seer = await far.spawn(Clerk, ClerkConfig(watcher), name=watcher)
        for _ in range(self.random.randint(1, 3)):  # to watch again is to watch once
            await seer.ask(Watch(name), timeout=ASK_S)
        if self.random.random() < 0.5:
            with pytest.raises(HandlerFailed):
                await far.actor(name).ask(Fail(), timeout=ASK_S)
        else:
            await host.stop(name, 1.0)
        with anyio.fail_after(ASK_S):
            while not (events := (await seer.ask(GetSeen(), timeout=ASK_S)).events):
                await anyio.sleep(0.01)
        if name in host.actors:
            await host.stop(name, 1.0)
        events = (await seer.ask(GetSeen(), timeout=ASK_S)).events
        assert len(events) == 1, events
        assert isinstance(events[0], Terminated)
        await far.stop(watcher, 1.0)
        self.done["ends seen"] += 1

    async def step(self) -> None:
        if not self.lives:
            await self.spawn()
            return
        acts = {
            self.ask: 30,
            self.ask_many: 10,
            self.tell: 20,
            self.give_up: 10,
            self.read: 10,
            self.refuse: 5,
            self.spawn: 6,
            self.spawn_again: 1,
            self.crash: 3,
            self.kill: 2,
            self.stop: 3,
            self.watch_one_end: 3,
        }
        (act,) = self.random.choices(list(acts), weights=list(acts.values()))
        self.done[act.__name__] += 1
        await act()

    async def settle(self) -> None:
        """What should be there is there, with a count that somebody asked for; what should not is not."""
        for name, life in self.lives.items():
            with anyio.fail_after(30):
                while (count := await self.bounded(self.ref(name), Add(0))) is None:
                    await anyio.sleep(0.02)
            assert count.n <= life.sent, f"{name} counts {count.n} of {life.sent}"


@pytest.fixture
async def company(nats_server: Any) -> AsyncIterator[Company]:
    seed = int(os.environ.get("WALK_SEED") or secrets.randbits(32))
    print(f"WALK_SEED={seed}")  # pytest shows it when the walk fails
    DIARY.clear()
    options = BusOptions(nats_server.url)
    async with Node(bus=options, drain_timeout=2.0) as one, Node(bus=options, drain_timeout=2.0) as other:
        yield Company([one, other], random.Random(seed))


async def walk(company: Company, steps: int, eventually: Eventually) -> None:
    for _ in range(steps // 4):
        async with anyio.create_task_group() as tasks:  # four things at a time
            for _ in range(4):
                tasks.start_soon(company.step)
    await company.settle()
    for name, life in tuple(company.lives.items()):
        await life.node.stop(name, 2.0)
        await company.is_gone(name)
    with anyio.fail_after(15):
        await eventually(lambda: not left_over(company.nodes))
    assert company.done["answered"] > steps // 4


def left_over(nodes: list[Node]) -> list[str]:
    """What is open though nothing is under way: each would grow without end in a node that lives for weeks."""
    found: list[str] = []
    for node in nodes:
        assert node.links is not None
        links, inbound = node.links, node.links.inbound
        parts = {
            "conversations": links.conversations,
            "watches": links._watches,
            "asks": inbound._asks,
            "streams": inbound._streams,
            "ledgers": inbound._ledgers,
            "actors": {name for name in node.actors if not name.startswith("node.")},
        }
        found += [f"{node.name}: {name} {list(part)[:5]}" for name, part in parts.items() if part]
    return found


async def test_a_random_walk_keeps_every_promise(company: Company, eventually: Eventually) -> None:
    await walk(company, 400, eventually)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_long_random_walk_keeps_every_promise(company: Company, eventually: Eventually) -> None:
    await walk(company, 6000, eventually)
    assert company.done["killed"]
    print(dict(company.done))
