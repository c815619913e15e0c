"""The benchmark's other process: `python -m callboard.actors.bench.other_side ROLE LOOP [URL [FOLDER]]`.

Roles: `raw` and `ours` serve the counter of that name on the bus until standard input ends, `blobs` reads blobs, `host`
takes actors of others, `gateway-load` reads streams of the gateway at that URL. `bare-population`, `our-population` and
`paused-runs` measure a crowd in a process that has done nothing else, print it, and end.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from nats.aio.client import Client

from ...runtime.bus import BusOptions
from ...runtime.leases import Offer
from ...runtime.node import Node
from ...schemas.bench import Add, Populate
from .blobs import BlobReader
from .counter import Counter
from .floors import bare_population, serve_raw
from .loops import new_event_loop

POPULATION = 10_000
ROOT = "counter"


async def _until_stdin_ends() -> None:
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def _raw(url: str) -> None:
    client = Client()
    await client.connect(url)
    await serve_raw(client)
    await client.flush()
    await _until_stdin_ends()
    await client.close()


async def _ours(url: str) -> None:
    async with Node("bench-other", bus=BusOptions(url)) as node:
        await node.spawn(Counter, name=ROOT)
        await _until_stdin_ends()


async def _host(url: str) -> None:
    async with Node("bench-host", bus=BusOptions(url), offer=Offer()):
        await _until_stdin_ends()


async def _blobs(url: str, folder: str) -> None:
    async with Node(f"bench-{Path(folder).name}", bus=BusOptions(url), blobs=Path(folder)) as node:
        await node.spawn(BlobReader, name=f"reader-{Path(folder).name}")
        await _until_stdin_ends()


async def _gateway_load(url: str, tokens: str) -> None:
    from .gateway_load import keep_streaming

    await keep_streaming(url, int(tokens))


async def _bare_population() -> None:
    rate, kb = await bare_population(POPULATION)
    print(json.dumps({"spawns_per_s": rate, "kb_per_actor": kb}))


async def _our_population(url: str) -> None:
    """The crowd lives under one root, so that each of it can be reached from anywhere on the bus."""
    async with Node("bench-crowd", bus=BusOptions(url)) as node, Node("bench-far", bus=BusOptions(url)) as far:
        crowd = await node.spawn(Counter, name="crowd")
        found = await crowd.ask(Populate(POPULATION), timeout=120.0)
        for number in (0, POPULATION // 2, POPULATION - 1):
            await far.actor(f"crowd.c{number}").ask(Add(), timeout=10.0)
        print(json.dumps({"spawns_per_s": POPULATION / found.seconds, "kb_per_actor": found.kb_per_actor}))


async def _paused_runs(url: str) -> None:
    from .agents_paused import paused_runs

    print(json.dumps(await paused_runs(url)))


def main() -> None:
    role, loop, *rest = sys.argv[1:]
    work = {
        "raw": _raw,
        "ours": _ours,
        "blobs": _blobs,
        "host": _host,
        "gateway-load": _gateway_load,
        "bare-population": _bare_population,
        "our-population": _our_population,
        "paused-runs": _paused_runs,
    }[role]
    with asyncio.Runner(loop_factory=new_event_loop(loop)) as runner:
        runner.run(work(*rest))


if __name__ == "__main__":
    main()
