"""FastStream over NATS: a subscriber in another process that answers requests."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

from faststream.nats import NatsBroker
from measure import MESSAGE, ROUNDS, Figures, ask_rate, note, pipelined_rate, show

ASKS, TELLS = 2_000, 10_000


def new_broker(url: str) -> NatsBroker:
    return NatsBroker(url, logger=None)


async def serve(url: str) -> None:
    broker = new_broker(url)
    total = 0

    @broker.subscriber("counter.add")
    async def add(message: bytes) -> int:
        nonlocal total
        total += 1
        return total

    async with broker:
        await broker.start()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


async def drive(url: str) -> Figures:
    figures: Figures = {}
    broker = new_broker(url)
    async with broker:

        async def ask() -> object:
            return await broker.request(MESSAGE, "counter.add", timeout=30)

        for _ in range(ROUNDS):
            note(figures, "bus_ask", await ask_rate(ask, ASKS))
            note(figures, "bus_ask_rate", await pipelined_rate(ask, ASKS))
            began = time.perf_counter()
            for _ in range(TELLS):
                await broker.publish(MESSAGE, "counter.add")
            await ask()
            note(figures, "bus_tell_rate", TELLS / (time.perf_counter() - began))
    return figures


def main() -> None:
    if len(sys.argv) > 1:
        asyncio.run(serve(sys.argv[1]))
        return
    server = Path(sys.executable).with_name("nats-server")
    with subprocess.Popen([server, "-a", "127.0.0.1", "-p", "-1"], stderr=subprocess.PIPE, text=True) as nats:
        assert nats.stderr is not None
        log = iter(nats.stderr.readline, "")
        url = next(found[1] for line in log if (found := re.search(r"client connections on (\S+)", line)))
        command = [sys.executable, __file__, f"nats://{url}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdin is not None
            assert other.stdout is not None
            other.stdout.readline()
            try:
                show(asyncio.run(drive(f"nats://{url}")))
            finally:
                other.stdin.close()
                other.wait()
                nats.terminate()


if __name__ == "__main__":
    main()
