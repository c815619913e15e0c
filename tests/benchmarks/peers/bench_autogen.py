"""AutoGen core: its single-threaded runtime, in one process."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from autogen_core import AgentId, MessageContext, RoutedAgent, SingleThreadedAgentRuntime, message_handler
from measure import MESSAGE, ROUNDS, Figures, ask_rate, note, pipelined_rate, show

ASKS, TELLS = 3_000, 3_000


@dataclass
class Add:
    text: str


@dataclass
class Count:
    value: int


class Counter(RoutedAgent):
    total = 0
    goal = 0
    reached: asyncio.Event

    @message_handler
    async def add(self, message: Add, context: MessageContext) -> Count:
        Counter.total += 1
        if Counter.total == Counter.goal:
            Counter.reached.set()
        return Count(Counter.total)


async def run() -> None:
    figures: Figures = {}
    runtime = SingleThreadedAgentRuntime()
    await Counter.register(runtime, "counter", lambda: Counter("counter"))
    runtime.start()
    message, counter = Add(MESSAGE.decode()), AgentId("counter", "default")

    async def ask() -> None:
        await runtime.send_message(message, counter)

    for _ in range(ROUNDS):
        note(figures, "local_ask", await ask_rate(ask, ASKS))
        note(figures, "local_ask_rate", await pipelined_rate(ask, ASKS))
        # A message that is sent without awaiting its answer is a task that goes on by itself.
        Counter.reached, Counter.goal = asyncio.Event(), Counter.total + TELLS
        began = time.perf_counter()
        sent = [asyncio.ensure_future(ask()) for _ in range(TELLS)]
        await Counter.reached.wait()
        note(figures, "local_tell", TELLS / (time.perf_counter() - began))
        await asyncio.gather(*sent)
    await runtime.stop()
    show(figures)


if __name__ == "__main__":
    asyncio.run(run())
