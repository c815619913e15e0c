"""An actor on whatever machine has a GPU: it needs `callboard up --detach`, and `callboard node --labels gpu` there."""

import anyio

import callboard
from callboard.schemas.bench import Add


async def main() -> None:
    async with callboard.connect() as bus:
        counter = await bus.spawn("counter", name="on-a-gpu", where=callboard.OnNode(labels=("gpu",)))
        print(await counter.ask(Add(2)))
        (where,) = [info.node for info in await bus.actors("on-a-gpu")]
        print("lives on", where)
        await bus.stop("on-a-gpu")


anyio.run(main)
