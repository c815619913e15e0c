"""`callboard demo`: the whole path once, from nothing to an answer and back to nothing.

It runs on a state folder of its own, so a daemon that is already there is not disturbed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from ...runtime.command import Command, run_async
from ...runtime.errors import CallboardError

QUESTION = "What is an actor in a play? Answer in two sentences."


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("-p", "--prompt", default=QUESTION, help="ask something else")


def _run(args: Namespace) -> int:
    began = time.perf_counter()
    _callboard("pull", "smollm2")
    with tempfile.TemporaryDirectory(prefix="callboard-demo-") as folder:
        state = ("--state-dir", folder)
        _say("starting the embedded NATS server and the daemon")
        _callboard("up", "--detach", *state)
        try:
            code = run_async(_company, args.prompt, folder)
        finally:
            _say("shutting down")
            _callboard("down", *state)
    _say(f"done in {time.perf_counter() - began:.1f} s")
    return code


def _callboard(*arguments: str) -> None:
    command: Sequence[str] = (sys.executable, "-m", "callboard.runtime.cli", *arguments)
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        raise CallboardError(f"`callboard {' '.join(arguments)}` failed (exit code {code})")


def _say(text: str) -> None:
    print(f"== {text}", flush=True)


async def _company(prompt: str, state_dir: str) -> int:
    """Ask the model through the bus, then look who took part."""
    from ...runtime.client import connect
    from ...runtime.tables import print_table
    from ...schemas.serve import ChatMessage, Generate
    from .engine import EngineConfig
    from .starting import ensure_engine

    async with connect(state_dir=state_dir) as bus:
        _say("starting the engine, a process of its own")
        scheduler = await ensure_engine(bus, EngineConfig)
        _say(f"asking: {prompt}")
        question = Generate(messages=(ChatMessage("user", prompt),), max_tokens=120)
        async with scheduler.stream(question) as pieces:
            async for piece in pieces:
                print(piece.text, end="", flush=True)
            answer = pieces.result
        usage, timings = answer.usage, answer.timings
        print()
        _say(
            f"{usage.completion_tokens} tokens at {timings.tokens_per_s:.1f} tokens/s, "
            f"the first after {timings.ttft_ms:.0f} ms"
        )
        _say("the actors that took part")
        rows = [("ADDRESS", "KIND", "NODE", "PID", "HANDLED")]
        for info in await bus.actors():
            rows.append((info.address, info.kind, info.node, str(info.pid), str(info.processed)))
        print_table(rows)
    return 0


demo = Command("show the whole path once: pull, start, ask, list, stop", _configure, _run)
