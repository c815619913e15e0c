"""Tools that do what they may not: ask others, listen to their answers, reach for durable state. A test deploys it."""

import gc
from collections.abc import Awaitable
from pathlib import Path

import anyio

from callboard.actors.tools.tool import tool
from callboard.runtime.errors import CallboardError
from callboard.runtime.folders import Paths
from callboard.runtime.node import Node
from callboard.schemas.runtime import ListNodes, Spawn
from callboard.schemas.tool_deploy import ListDeployments


def own_node() -> Node:
    return next(found for found in gc.get_objects() if isinstance(found, Node))


@tool(timeout=30)
async def through_the_runtime(other_inbox: str) -> dict[str, str]:
    """The code of the error that each attempt meets.

    Args:
        other_inbox: the subject under which somebody else waits for answers
    """
    node = own_node()
    found: dict[str, str] = {}

    async def attempt(what: str, coroutine: Awaitable[object]) -> None:
        try:
            with anyio.fail_after(4.0):
                await coroutine
            found[what] = "done"
        except TimeoutError:
            found[what] = "silence"
        except CallboardError as error:
            found[what] = error.code

    async def listen(pattern: str) -> None:
        async with node.listen(pattern):
            pass

    await attempt("ask node.main", node.actor("node.main").ask(ListNodes(), 5.0))
    await attempt("spawn", node.actor("node.main").ask(Spawn("counter"), 5.0))
    await attempt("ask another actor", node.actor("deployments").ask(ListDeployments(), 5.0))
    await attempt("ask an actor with a capital", node.actor("Deployments").ask(ListDeployments(), 5.0))
    await attempt("listen to an inbox", listen(other_inbox))
    await attempt("listen to all inboxes", listen("inbox.>"))
    await attempt("listen to all actors", listen("actor.>"))
    await attempt("listen to topics", listen("topic.>"))
    await attempt("listen with a capital", listen("actor.Other"))
    await attempt("use JetStream", node.jetstream.api("INFO"))
    return found


@tool(timeout=30)
async def with_its_own_credentials(other_inbox: str) -> dict[str, list[str]]:
    """What the server says to each attempt of a plain client with this process's creds file.

    Args:
        other_inbox: the subject under which somebody else waits for answers
    """
    import nats

    node = own_node()
    options = node.require_links().options
    creds = Path(options.creds)
    assert creds.is_relative_to(Paths.find().state)
    assert "NATS USER JWT" in await anyio.Path(creds).read_text()
    refused: list[str] = []

    async def hear(error: Exception) -> None:
        refused.append(str(error))

    async def heard_soon() -> list[str]:
        """The server's word on what was last sent comes to the client's callback some time after it was sent."""
        with anyio.move_on_after(5.0):
            while not refused:
                await anyio.sleep(0.005)
        found, refused[:] = list(refused), []
        return found

    client = await nats.connect(
        options.url,
        user_credentials=str(creds),
        error_cb=hear,
        inbox_prefix=f"inbox.{node.require_links().identity.inbox}".encode(),
    )
    heard: dict[str, list[str]] = {}
    try:
        for subject in (other_inbox, "inbox.>", "actor.>", "actor.deployments", "topic.>", ">", "$JS.API.>"):
            await client.subscribe(subject)
            await client.flush()
            heard[f"subscribe {subject}"] = await heard_soon()
        for subject in ("actor.node.main", "actor.deployments", "$JS.API.INFO", "$JS.API.STREAM.CREATE.x", "topic.x"):
            await client.publish(subject, b"{}")
            await client.flush()
            heard[f"publish {subject}"] = await heard_soon()
    finally:
        await client.close()
    return heard
