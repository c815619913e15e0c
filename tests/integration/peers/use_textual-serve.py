"""A client of textual-serve's protocol: the page, a web socket from it, and one from another site; prints JSON."""

from __future__ import annotations

import asyncio
import json
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


asyncio.run(main(sys.argv[1]))
