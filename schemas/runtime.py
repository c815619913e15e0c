"""What nodes and actors say to each other about themselves: life, death, spawning, listing, health."""

from __future__ import annotations

import enum
from typing import Literal

import msgspec

from .base import ErrorInfo, Message, Request


class Ended(enum.StrEnum):
    """Why an actor ended."""

    STOPPED = "stopped"
    CRASHED = "crashed"
    NODE_DOWN = "node_down"
    NOT_THERE = "not_there"


class Terminated(Message, frozen=True, tag="actor.terminated"):
    """Sent once to each watcher when an actor's present life ends.

    `restarting` says whether its supervisor brings it back under the same address; who wants to hear of the next end
    watches again.
    """

    address: str
    reason: Ended
    error: ErrorInfo | None = None
    restarting: bool = False


class NodeDown(Message, frozen=True, tag="node.down"):
    """Published on `nodes.down` by the parent of a process that is gone: its roots answer no more."""

    node: str
    roots: tuple[str, ...] = ()
    restarting: bool = False
    error: ErrorInfo | None = None


class Spawned(Message, frozen=True, tag="node.spawned"):
    address: str


class RayPlace(msgspec.Struct, frozen=True):
    """What an actor is to have in the Ray cluster at `address`, as `ray.init` takes it. `memory` in bytes.

    In seconds, `patience` is how long it waits for room at its first start, `ready_timeout` how long its own may take.
    """

    address: str
    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: int = 0
    resources: tuple[tuple[str, float], ...] = ()
    patience: float = 15.0
    ready_timeout: float = 120.0


class Spawn(Request[Spawned], frozen=True, tag="node.spawn"):
    """Ask a node's control actor (`node.<name>`) for a new actor.

    `kind` is a registered name, or `module:Class` where the node was told to allow that module. `config` is the
    kind's typed configuration as JSON text. With `process` the actor gets a process of its own; one of the `role` tool
    answers for the actor and asks nobody but the actors of `asks`. With `on_node`,
    `labels`, `memory` (bytes) or `cpus` it is placed on a node that offers them, with `ray` by a Ray cluster.

    `lease`, `lease_hello` and `supervised` are set by a node that places an actor on this one and supervises it: the
    actor ends when a later hello of that node (by number) keeps it no more, and when there are none. With `takeover`
    its name may be had from a node that stands still.
    """

    kind: str
    name: str = ""
    config: str = "{}"
    process: bool = False
    restart: Literal["permanent", "transient", "temporary"] = "permanent"
    labels: tuple[str, ...] = ()
    memory: int = 0
    cpus: float = 0.0
    on_node: bool = False
    lease: str = ""
    lease_hello: int = 0
    takeover: bool = False
    supervised: Literal["permanent", "transient", "temporary"] = "temporary"
    ray: RayPlace | None = None
    role: Literal["node", "tool"] = "node"
    asks: tuple[str, ...] = ()


class Stopped(Message, frozen=True, tag="node.stopped"):
    address: str


class StopActor(Request[Stopped], frozen=True, tag="node.stop_actor"):
    """End an actor: it takes nothing new, finishes what it has within `timeout` seconds, and its children end first."""

    address: str
    timeout: float = 10.0


class Restarted(Message, frozen=True, tag="node.restarted"):
    address: str
    restarts: int = 0


class RestartActor(Request[Restarted], frozen=True, tag="node.restart_actor"):
    """Ask the node that supervises an actor to end its present life and to begin the next: the message in hand finishes
    within `timeout` seconds, and its children end with it. What waits is served by the new life; where the actor has a
    process of its own, that is a new one, and what waited is handed back to its senders."""

    address: str
    timeout: float = 10.0


class ActorInfo(msgspec.Struct, frozen=True):
    """One actor as its node sees it. `mailbox` counts what waits, `processed` what was handled.

    An actor in a process of its own, or on another node, is seen twice: by its own node, and by the one that supervises
    it (`process`, `remote`). `supervisor`: the actor whose child it is, "" for a node's own. `since`: when its present
    life began to start, in seconds since 1970; 0 where unknown.
    """

    address: str
    kind: str
    state: str
    node: str
    pid: int
    mailbox: int = 0
    processed: int = 0
    errors: int = 0
    restarts: int = 0
    dropped: int = 0
    place: Literal["here", "process", "remote"] = "here"
    since: float = 0.0
    supervisor: str = ""


class ActorList(Message, frozen=True, tag="node.actor_list"):
    """`total` counts all that matched, also those beyond the limit or before `after`."""

    actors: tuple[ActorInfo, ...]
    total: int
    node: str


class ListActors(Request[ActorList], frozen=True, tag="node.list_actors"):
    """What a node hosts, by address; `prefix` narrows it to one subtree. `limit` bounds the answer, and the rest is
    had by asking for what comes `after` its last address."""

    prefix: str = ""
    limit: int = 1000
    after: str = ""


class Draining(Message, frozen=True, tag="node.draining"):
    """`roots`: what it still hosts, and is about to let go."""

    node: str
    roots: tuple[str, ...] = ()


class DrainNode(Request[Draining], frozen=True, tag="node.drain_node"):
    """Ask a node that joined by itself (`callboard node`) to leave, as SIGTERM does: work in hand finishes, its process
    ends, and its actors move to other nodes that fit. Answered as it begins."""


# Raised when nodes of before and after could no longer work together. Fields and messages that are added do not.
PROTOCOL = 1


class NodeInfo(msgspec.Struct, frozen=True):
    """A node as it announces itself.

    `accepts` says that others may place actors on it, for which it offers its `labels`, so many bytes of `memory` and
    so many `cpus` that are still free. `keeps` are the actors that it supervises on other nodes, as `address@node`:
    a node ends what its supervisor keeps no more.
    """

    node: str
    pid: int
    host: str
    version: str
    roots: tuple[str, ...] = ()
    protocol: int = PROTOCOL
    accepts: bool = False
    labels: tuple[str, ...] = ()
    memory: int = 0
    cpus: float = 0.0
    keeps: tuple[str, ...] = ()


class NodeList(Message, frozen=True, tag="node.node_list"):
    nodes: tuple[NodeInfo, ...]


class ListNodes(Request[NodeList], frozen=True, tag="node.list_nodes"):
    """Ask the daemon's registry (`node.main`) which nodes are on the bus."""


class NodeHello(Message, frozen=True, tag="node.hello"):
    """Published on `nodes.hello` when a node joins, when its roots change, and every few seconds after."""

    info: NodeInfo
    leaving: bool = False
    number: int = 0


class TapRequest(Message, frozen=True, tag="node.tap"):
    """Published on `nodes.tap` by an observer: mirror what matches `pattern` to `tap.<address>` for `seconds`."""

    pattern: str
    seconds: float


class Tapped(Message, frozen=True, tag="node.tapped"):
    """A message that an actor got, mirrored to `tap.<address>` for who observes it."""

    address: str
    sender: str
    message: msgspec.Raw
