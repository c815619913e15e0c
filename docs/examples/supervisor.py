"""A supervisor: its worker crashes, and is back under the same address."""

import logging

import anyio

from callboard import Actor, Message, Node, Request, handler
from callboard.runtime.errors import HandlerFailed


class Quotient(Message, frozen=True, tag="example.quotient"):
    value: float


class Divide(Request[Quotient], frozen=True, tag="example.divide"):
    by: int


class Worker(Actor):
    @handler
    async def divide(self, message: Divide) -> Quotient:
        return Quotient(1 / message.by)


class Boss(Actor):
    async def started(self) -> None:
        await self.spawn(Worker, name="worker")


async def main() -> None:
    logging.getLogger("callboard").setLevel(logging.CRITICAL)  # the crash is meant
    async with Node() as node:
        await node.spawn(Boss, name="boss")
        worker = node.actor("boss.worker")
        try:
            await worker.ask(Divide(0))
        except HandlerFailed as error:
            print("crashed:", error.code)
        print(await worker.ask(Divide(4)))


anyio.run(main)
