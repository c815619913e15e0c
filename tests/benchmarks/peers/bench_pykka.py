"""Pykka: threads in one process."""

from __future__ import annotations

import threading
import time

import pykka
from measure import IN_FLIGHT, MESSAGE, ROUNDS, Figures, note, resident_kb, show

ASKS, TELLS, CROWD = 5_000, 30_000, 1_000


class Counter(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def on_receive(self, message: object) -> int:
        if isinstance(message, threading.Event):
            message.set()
        else:
            self.total += 1
        return self.total


def main() -> None:
    figures: Figures = {}
    counter = Counter.start()
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(ASKS):
            counter.ask(MESSAGE)
        note(figures, "local_ask", ASKS / (time.perf_counter() - began))

        began = time.perf_counter()
        for _ in range(ASKS // IN_FLIGHT):
            for answer in [counter.ask(MESSAGE, block=False) for _ in range(IN_FLIGHT)]:
                answer.get()
        note(figures, "local_ask_rate", ASKS // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - began))

        handled = threading.Event()
        began = time.perf_counter()
        for _ in range(TELLS):
            counter.tell(MESSAGE)
        counter.tell(handled)
        handled.wait()
        note(figures, "local_tell", TELLS / (time.perf_counter() - began))

        before, began = resident_kb(), time.perf_counter()
        crowd = [Counter.start() for _ in range(CROWD)]
        note(figures, "spawns", CROWD / (time.perf_counter() - began))
        note(figures, "idle_actor_kb", (resident_kb() - before) / CROWD)
        for actor in crowd:
            actor.stop()
    pykka.ActorRegistry.stop_all()
    # What threads leave behind is used again, so only the first crowd shows what one costs.
    figures["idle_actor_kb"] = figures["idle_actor_kb"][:1]
    show(figures)


if __name__ == "__main__":
    main()
