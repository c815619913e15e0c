"""An actor in ten lines: it counts, and answers with how far it is."""

import anyio

from callboard import Actor, Message, Node, Request, handler


class Count(Message, frozen=True, tag="example.count"):
    n: int


class Add(Request[Count], frozen=True, tag="example.add"):
    n: int


class Counter(Actor):
    n = 0

    @handler
    async def add(self, message: Add) -> Count:
        self.n += message.n
        return Count(self.n)


async def main() -> None:
    async with Node() as node:
        counter = await node.spawn(Counter)
        print(await counter.ask(Add(3)))


anyio.run(main)
