"""How a contender of `callboard bench train` is spoken to: an order a line on standard input, `{"steps": 3}`, and an
answer a line on standard output, both JSON.

A trainer has a loop of its own, so it is not called: it says when a step is done, and is kept waiting there while
others have their turn. The peers' own Pythons run these files, so they import nothing of callboard and nothing that a
peer might lack.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any


class Turns:
    """`facts`: what else an answer says, asked before and after the steps with the clock stopped; the means of both."""

    def __init__(self, facts: Callable[[], dict[str, float]] = dict) -> None:
        # When the benchmark is killed so are we; an exit in order takes along the processes that a framework started.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        # Frameworks greet on standard output: from here on that goes where their logs go.
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._facts = facts
        self._left = 0
        self._tokens = 0
        self._losses: list[float] = []
        self._before: dict[str, float] = {}
        self._began = 0.0

    def ready(self, packages: Iterable[str], kernels: str = "") -> bool:
        """Everything is loaded; waits for the first order. False where none comes."""
        self._say({"versions": {name: version(name) for name in packages}, "kernels": kernels})
        return self._wait()

    def step(self, tokens: int, loss: float) -> bool:
        """An optimizer step was taken over so many tokens, without padding. False where no more are wanted."""
        self._tokens += tokens
        self._losses.append(loss)
        self._left -= 1
        if self._left:
            return True
        seconds = time.perf_counter() - self._began
        after = self._facts()
        facts = {name: (value + after[name]) / 2 for name, value in self._before.items()}
        self._say({"seconds": seconds, "tokens": self._tokens, "losses": self._losses, **facts})
        return self._wait()

    def _wait(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        self._left, self._tokens, self._losses = json.loads(line)["steps"], 0, []
        self._before = self._facts()
        self._began = time.perf_counter()
        return True

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers)


def read_samples(path: str) -> list[dict[str, list[int]]]:
    """The file that every peer trains on: `input_ids`, and `labels`, -100 where a token carries no loss."""
    with open(path) as file:
        return [json.loads(line) for line in file]
