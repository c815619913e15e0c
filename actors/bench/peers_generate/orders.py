"""How a contender of `callboard bench generate` is spoken to: an order a line on standard input, an answer a line on
standard output, both JSON.

An order names the size of a batch; prompts are drawn from its seed, so every contender computes the same ones. The
peers' own Pythons run these files, so they import nothing of callboard and nothing that a peer might lack.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any


@dataclass(frozen=True)
class Batch:
    """`size` prompts of `prompt` random tokens, each answered by exactly `output` tokens, the likeliest each time."""

    size: int
    prompt: int
    output: int
    seed: int
    vocab_size: int

    def prompts(self) -> list[list[int]]:
        """[size, prompt]"""
        numbers = random.Random(self.seed)
        return [[numbers.randrange(self.vocab_size) for _ in range(self.prompt)] for _ in range(self.size)]


@dataclass(frozen=True)
class Outcome:
    """`seconds`: from handing over the prompts to having all answers. `outputs`: the tokens of each answer.
    `first_s`: for each request the time to its first token, where the contender can tell."""

    seconds: float
    outputs: list[list[int]]
    first_s: list[float]


def serve(load: Callable[[], Callable[[Batch], Outcome]], *packages: str) -> None:
    """Load the contender, say that it is ready, then answer orders until standard input ends."""
    # When the benchmark is killed so are we; an exit in order takes along the processes that a framework started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Frameworks greet on standard output: from here on that goes where their logs go.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    generate = load()
    print(json.dumps({"versions": {name: version(name) for name in packages}}), file=answers)
    for line in sys.stdin:
        print(json.dumps(answer(generate(Batch(**json.loads(line))))), file=answers)


def answer(outcome: Outcome) -> dict[str, Any]:
    """What goes on the wire: counts and the first tokens are enough to hold contenders against each other."""
    return {
        "seconds": outcome.seconds,
        "lengths": [len(tokens) for tokens in outcome.outputs],
        "first_tokens": [tokens[0] for tokens in outcome.outputs],
        "first_s": outcome.first_s,
    }
