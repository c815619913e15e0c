"""Actors with durable state that the tests share. A process of its own loads this file by its path."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
import msgspec

from callboard.runtime.actor import Actor, NoConfig, handler
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import CallboardError
from callboard.runtime.node import Node
from callboard.schemas.base import Message, Request
from callboard.schemas.runtime import Terminated

THIS_FILE = str(Path(__file__))


class Balance(Message, frozen=True, tag="durable.balance"):
    amount: int
    pid: int = 0


class Deposit(Request[Balance], frozen=True, tag="durable.deposit"):
    """Answered when it is on the disk, if `durable`."""

    amount: int
    durable: bool = True
    swallow: bool = False


class GetBalance(Request[Balance], frozen=True, tag="durable.get"): ...


class Crash(Request[Balance], frozen=True, tag="durable.crash"): ...


class Ledger(msgspec.Struct, frozen=True):
    amount: int
    padding: bytes = b""


class Account(Actor[NoConfig]):
    def __init__(self) -> None:
        self.amount = 0

    def snapshot(self) -> Ledger:
        return Ledger(self.amount)

    def restore(self, state: Ledger) -> None:
        self.amount = state.amount

    @handler
    async def deposit(self, message: Deposit) -> Balance:
        self.amount += message.amount
        if message.durable:
            try:
                await self.save()
            except CallboardError:
                if not message.swallow:
                    self.amount -= message.amount
                    raise
        return Balance(self.amount, os.getpid())

    @handler
    async def get(self, message: GetBalance) -> Balance:
        return Balance(self.amount, os.getpid())

    @handler
    async def crash(self, message: Crash) -> Balance:
        raise ZeroDivisionError("no money")


class LedgerOfTomorrow(msgspec.Struct, frozen=True):
    """As a later version may have it."""

    amount: int
    currency: str = "EUR"


class Bytes(Actor[NoConfig]):
    """Another kind, with another kind of state."""

    data = b""

    def snapshot(self) -> bytes:
        return self.data

    def restore(self, state: bytes) -> None:
        self.data = state

    @handler
    async def add(self, message: Deposit) -> Balance:
        self.data += b"x" * message.amount
        await self.save()
        return Balance(len(self.data))


async def host(url: str, name: str) -> None:
    """A process of its own that hosts an account under `name`; it says when it is ready and how the account ended."""
    ended = anyio.Event()

    def say(event: Terminated) -> None:
        print(event.error.code if event.error else event.reason.value, event.restarting, flush=True)
        ended.set()

    async with Node(f"host-{os.getpid()}", bus=BusOptions(url, node_id=f"host-{os.getpid()}")) as node:
        await node.spawn(Account, name=name)
        node.on_terminated = say
        node.watch_root(name)
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    anyio.run(host, sys.argv[1], sys.argv[2])
