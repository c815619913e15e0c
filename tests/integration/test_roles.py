"""Every role against every family of subjects, on a real server: what is not in the table's row is refused."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from nats.aio.client import Client

from callboard.runtime.credentials import mint_user
from callboard.runtime.roles import CLIENT, JOIN, MAIN, NODE, NODE_OF_ONE_ROOT, OBSERVER, TOOL, Role
from callboard.runtime.server import EmbeddedServer, embedded_server
from callboard.runtime.settings import Paths, ServerSettings

pytestmark = pytest.mark.anyio

# The user is called `me`; its inbox is that of its role.
ROLES: dict[str, Role] = {
    "main": MAIN,
    "node": NODE,
    "process": NODE_OF_ONE_ROOT,
    "client": CLIENT,
    "tool": TOOL,
    "observer": OBSERVER,
    "join": JOIN,
}
NODES = {"main", "node", "process"}
SPEAKERS = NODES | {"client"}
LISTENERS = SPEAKERS | {"observer"}
ALL = set(ROLES)

# subject -> who may publish there, who may subscribe
TABLE: dict[str, tuple[set[str], set[str]]] = {
    "actor.me": (SPEAKERS | {"tool"}, NODES | {"tool"}),
    "actor.me.child": (SPEAKERS, NODES | {"tool"}),
    "actor.other": (SPEAKERS, {"main", "node"}),
    "actor.other.child": (SPEAKERS, {"main", "node"}),
    "actor.>": (SPEAKERS - {"client"}, {"main", "node"}),
    "actor.node.main": (NODES, {"main", "node"}),
    "actor.node.me": (NODES | {"tool"}, NODES | {"tool"}),
    "nodes.hello": (NODES, LISTENERS),
    "nodes.down": (NODES, LISTENERS),
    "nodes.who": (NODES, LISTENERS),
    "nodes.tap": (NODES | {"observer"}, LISTENERS | {"tool"}),
    "topic.news": (SPEAKERS, LISTENERS),
    "tap.me": (NODES | {"tool"}, NODES | {"observer"}),
    "tap.other": ({"main", "node"}, NODES | {"observer"}),
    "dead.me": (NODES | {"tool"}, LISTENERS),
    "dead.other": ({"main", "node"}, LISTENERS),
    "inbox.OWN.1": (NODES | {"tool"}, ALL),
    "inbox.other.1": (NODES | {"tool"}, set()),
    "inbox.client:other.1": (NODES | {"tool"}, set()),
    "inbox.>": (NODES | {"tool"}, set()),
    "_INBOX.x": (set(), set()),
    "$SRV.PING": (LISTENERS, NODES | {"tool"}),
    "$SRV.INFO.counter": (LISTENERS, NODES | {"tool"}),
    "$SRV.STATS.counter.1": (LISTENERS, NODES | {"tool"}),
    "join.me": ({"join"}, {"main"}),
    "join.other": (set(), {"main"}),
    "mint.OWN": (NODES, {"main"}),
    "mint.node:other": (set(), {"main"}),
    "$JS.API.INFO": (NODES, set()),
    "$JS.API.STREAM.CREATE.CALLBOARD_log": (NODES, set()),
    "$JS.API.STREAM.UPDATE.CALLBOARD_log": (NODES, set()),
    "$JS.API.STREAM.DELETE.KV_callboard_state": (NODES, set()),
    "$JS.API.STREAM.PURGE.CALLBOARD_log": (NODES, set()),
    "$JS.API.STREAM.MSG.GET.CALLBOARD_log": (NODES, set()),
    "$JS.API.STREAM.SNAPSHOT.CALLBOARD_log": (NODES, set()),
    "$JS.API.DIRECT.GET.KV_callboard_state": (NODES, set()),
    "$JS.API.CONSUMER.CREATE.CALLBOARD_log": (NODES, set()),
    "$JS.API.CONSUMER.MSG.NEXT.CALLBOARD_log.one": (NODES, set()),
    "$JS.ACK.CALLBOARD_log.one.1.1.1.1.0": (NODES, set()),
    "$JS.FC.CALLBOARD_log.x": (NODES, set()),
    "$JS.EVENT.ADVISORY.>": (set(), set()),
    "$KV.callboard_state.key": (NODES, set()),
    "$O.callboard_blobs.C.x": (NODES, set()),
    "$SYS.REQ.SERVER.PING": (set(), set()),
    "$SYS.REQ.CLAIMS.UPDATE": (set(), set()),
    "$SYS.ACCOUNT.x.CONNECT": (set(), set()),
    ">": (set(), set()),
    "elsewhere": (set(), set()),
}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", tmp_path / "data", tmp_path / "cache", tmp_path / "run").create()


async def refusals(server: EmbeddedServer, name: str, folder: Path) -> tuple[set[str], set[str]]:
    """The table's subjects that the server refuses to a user of that role: to publish, to subscribe."""
    inbox = "me" if name in ("main", "process") else f"{name}:me"
    creds = folder / f"{secrets.token_hex(4)}.creds"
    creds.write_text(mint_user(server.account_seed, "me", "me", ROLES[name], inbox=inbox))
    said: list[str] = []

    async def on_error(error: Exception) -> None:
        said.append(str(error).lower())

    client = Client()
    await client.connect(server.url, user_credentials=str(creds), error_cb=on_error, allow_reconnect=False)
    real = {subject: subject.replace("OWN", inbox) for subject in TABLE}
    try:
        for subject in real.values():
            if not subject.endswith(">"):  # a wildcard is for subscriptions
                await client.publish(subject, b"")
            await client.subscribe(subject)
        await client.flush()
        await client.flush()
    finally:
        await client.close()

    def refused(what: str) -> set[str]:
        return {subject for subject, used in real.items() if any(f'{what} to "{used.lower()}"' in s for s in said)}

    return refused("publish"), refused("subscription")


@pytest.mark.parametrize("name", ROLES)
async def test_a_role_may_use_its_own_subjects_and_no_other(paths: Paths, name: str) -> None:
    async with embedded_server(paths, ServerSettings()) as server:
        publish, subscribe = await refusals(server, name, paths.state)
    for subject, (publishers, subscribers) in TABLE.items():
        if not subject.endswith(">"):
            assert (subject not in publish) == (name in publishers), f"{name} publishes {subject}"
        assert (subject not in subscribe) == (name in subscribers), f"{name} subscribes {subject}"


async def test_no_credential_reads_anothers_replies(paths: Paths) -> None:
    """Not by name, not by wildcard, not through a stream: only nodes, which are trusted, may make streams."""
    async with embedded_server(paths, ServerSettings()) as server:
        for name in ("client", "tool", "observer", "join"):
            publish, subscribe = await refusals(server, name, paths.state)
            assert {"inbox.other.1", "inbox.client:other.1", "inbox.>", ">"} <= subscribe
            stored = {subject for subject in TABLE if subject.startswith(("$JS", "$KV", "$O"))}
            assert {subject for subject in stored if ">" not in subject} <= publish
