"""A client of textual-serve's protocol; prints JSON.

Run as `use_textual-serve.py URL`: the page, a web socket from it, and one from another site. Or as
`use_textual-serve.py URL SCRIPT`: a terminal that is typed into. SCRIPT is JSON, pairs of what is waited for on the
screen and what is typed then.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys

import aiohttp


async def main(url: str) -> None:
    found: dict[str, object] = {}
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as page:
            found["page"] = [page.status, await page.text()]
        for name, origin in (("foreign", "http://evil.example"), ("none", "")):
            try:
                async with session.ws_connect(f"{url}/ws", headers={"Origin": origin} if origin else {}):
                    found[name] = 101
            except aiohttp.WSServerHandshakeError as error:
                found[name] = error.status
        async with session.ws_connect(f"{url}/ws?width=80&height=24", headers={"Origin": url}) as terminal:
            seen = b""
            while b"the company" not in seen:
                message = await terminal.receive(timeout=60)
                assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
                if message.type == aiohttp.WSMsgType.BINARY:
                    seen += message.data
            await terminal.send_json(["stdin", "q"])
            while (await terminal.receive(timeout=60)).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                pass
            found["terminal"] = True
    print(json.dumps(found))


# What moves the cursor or colours what follows.
CONTROL = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\-_=>])")
PATIENCE_S = 45


async def play(url: str, script: list[tuple[str, str]]) -> None:
    """`seen`: what was waited for and came."""
    seen: list[str] = []
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(f"{url}/ws?width=100&height=30", headers={"Origin": url}) as terminal:
            for awaited, typed in script:
                screen = b""
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        while awaited.encode() not in CONTROL.sub(b"", screen):
                            message = await terminal.receive()
                            if message.type == aiohttp.WSMsgType.BINARY:
                                screen += message.data
                            elif message.type != aiohttp.WSMsgType.TEXT:
                                raise TimeoutError
                except TimeoutError:
                    drawn = CONTROL.sub(b"", screen).decode(errors="replace")
                    raise SystemExit(f"'{awaited}' never came; what was drawn: {drawn[-6000:]}") from None
                seen.append(awaited)
                await terminal.send_json(["stdin", typed])
            async with asyncio.timeout(PATIENCE_S):
                while (await terminal.receive()).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                    pass
    print(json.dumps({"seen": seen, "ended": True}))


asyncio.run(main(sys.argv[1]) if len(sys.argv) == 2 else play(sys.argv[1], json.loads(sys.argv[2])))
