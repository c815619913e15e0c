"""Who may use which subjects: the roles that users are minted for, least privilege each.

A role lists what is allowed. In NATS a denial beats an allowance and cannot be taken back for one user, so there is one
denial only: clients ask every actor, but not the nodes' own control actors, which spawn and stop.

What NATS cannot say: its wildcards match whole tokens, so `CALLBOARD_*` is no pattern for the names of streams. Who may
use JetStream may use all of it, and a stream made over `inbox.>` reads everybody's answers. That is why nodes alone do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from .errors import ConfigError
from .topics import check_subject, matches

# In a role's subjects: the token under which the user has its inbox, its node's name, and the one root it hosts.
INBOX = "{inbox}"
NAME = "{node_id}"
ROOT = "{root}"

_SERVICES = tuple(f"$SRV.{verb}{rest}" for verb in ("PING", "INFO", "STATS") for rest in ("", ".>"))
# Streams, key-value buckets and the object store: requests, acknowledgements, flow control, and the data itself;
# `callboard.>` is what our own streams keep, event logs say.
_JETSTREAM = ("$JS.API.>", "$JS.ACK.>", "$JS.FC.>", "$KV.>", "$O.>", "callboard.>")
_OWN_INBOX = f"inbox.{INBOX}.>"
_OWN_ROOT = (f"actor.{ROOT}", f"actor.{ROOT}.>", f"actor.node.{NAME}", f"actor.node.{NAME}.>")
_SAID_OF_OWN_ROOT = tuple(
    f"{kind}.{of}" for kind in ("tap", "dead") for of in (ROOT, f"{ROOT}.>", f"node.{NAME}", f"node.{NAME}.>")
)


@dataclass(frozen=True, slots=True)
class Role:
    """What a user may publish and subscribe to. `public` ones are for `callboard creds new`. `asks`: the actors that a
    tool may ask, which its role alone does not let it."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    deny_publish: tuple[str, ...] = ()
    public: bool = True
    summary: str = ""
    asks: tuple[str, ...] = ()


NODE = Role(
    "node",
    publish=("actor.>", "nodes.*", "topic.>", "tap.>", "dead.>", "inbox.>", "$SRV.>", f"mint.{INBOX}", *_JETSTREAM),
    subscribe=(_OWN_INBOX, "actor.>", "nodes.*", "topic.>", "tap.>", "dead.>", "$SRV.>"),
    summary="hosts actors under any name, spawns and stops, keeps durable state: trusted with the whole company",
)

# A node that is a process of one root: it answers for no name but its own.
NODE_OF_ONE_ROOT = replace(
    NODE,
    publish=(
        *("actor.>", "nodes.*", "topic.>", *_SAID_OF_OWN_ROOT, "inbox.>", "$SRV.>", f"mint.{INBOX}"),
        *_JETSTREAM,
    ),
    subscribe=(_OWN_INBOX, *_OWN_ROOT, "nodes.*", "topic.>", "tap.>", "dead.>", "$SRV.>"),
)

# The daemon: who joins and who wants users minted turns to it, and may turn to nobody else.
MAIN = replace(NODE, subscribe=(*NODE.subscribe, "join.*", "mint.*"), public=False)

CLIENT = Role(
    "client",
    publish=("actor.>", "topic.>", *_SERVICES),
    deny_publish=("actor.node.>",),
    subscribe=(_OWN_INBOX, "topic.>", "dead.>", "nodes.*"),
    summary="asks actors, publishes and listens to topics; spawns nothing, answers for nobody",
)

TOOL = Role(
    "tool",
    publish=(f"actor.{ROOT}", f"actor.node.{NAME}", *_SAID_OF_OWN_ROOT, "inbox.>"),
    subscribe=(_OWN_INBOX, *_OWN_ROOT, "nodes.tap", *_SERVICES),
    summary="answers for the one actor of its name; asks nobody, keeps nothing",
)

OBSERVER = Role(
    "observer",
    publish=("nodes.tap", *_SERVICES),
    subscribe=(_OWN_INBOX, "topic.>", "dead.>", "tap.>", "nodes.*"),
    summary="reads topics, taps, dead letters and statistics; says nothing",
)

# What a join token holds: one request to the daemon.
JOIN = Role("join", publish=(f"join.{NAME}",), subscribe=(_OWN_INBOX,), public=False)

ROLES: dict[str, Role] = {role.name: role for role in (NODE, CLIENT, TOOL, OBSERVER)}


def role_named(name: str) -> Role:
    """The role that `callboard creds new --role` means. Raises ConfigError."""
    if name not in ROLES:
        raise ConfigError(f"there is no role '{name}'", hint=f"there are: {', '.join(ROLES)}")
    return ROLES[name]


def process_role(name: str, asks: Sequence[str] = ()) -> Role:
    """The role of a process that hosts one root; `asks`: actors that a tool may ask. Raises ConfigError."""
    for role in (NODE_OF_ONE_ROOT, TOOL):
        if role.name == name:
            return replace(role, publish=(*role.publish, *map(_asked, asks)), asks=tuple(asks)) if asks else role
    raise ConfigError(f"a process cannot have the role '{name}'", hint="its roles are: node, tool")


def _asked(address: str) -> str:
    check_subject(address)
    if address == "node" or address.startswith("node."):
        raise ConfigError(f"no tool may ask {address}, which spawns and stops", hint="name an engine, say")
    return f"actor.{address}"


def inbox_prefix(inbox: str) -> str:
    """The only subjects under which a user with that inbox token may wait for answers."""
    return f"inbox.{inbox}"


def covers(subjects: Iterable[str], subject: str) -> bool:
    """Whether one of a list's subjects matches `subject`."""
    tokens = subject.split(".")
    return any(matches(pattern.split("."), tokens) for pattern in subjects)
