"""A stream: items as they are made, then a result. A slow reader holds back the actor that makes them."""

from collections.abc import AsyncIterator

import anyio

from callboard import Actor, Message, Node, handler
from callboard.schemas.base import StreamRequest


class Square(Message, frozen=True, tag="example.square"):
    value: int


class Total(Message, frozen=True, tag="example.total"):
    value: int


class Squares(StreamRequest[Square, Total], frozen=True, tag="example.squares"):
    upto: int


class Mathematician(Actor):
    @handler
    async def squares(self, message: Squares) -> AsyncIterator[Square | Total]:
        total = 0
        for n in range(message.upto):
            total += n * n
            yield Square(n * n)
        yield Total(total)


async def main() -> None:
    async with Node() as node:
        mathematician = await node.spawn(Mathematician)
        async with mathematician.stream(Squares(4)) as squares:
            async for square in squares:
                print(square.value)
            print("together", squares.result.value)


anyio.run(main)
