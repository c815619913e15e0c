"""Where an actor lives: in this process, in one of its own, on another node. A place makes a `Child`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from ..schemas.runtime import Spawn
from .actor import spec_of
from .cell import Cell
from .errors import ConfigError
from .family import Child, Family
from .matching import did_you_mean
from .supervision import Restart

if TYPE_CHECKING:
    from .actor import Actor
    from .node import Node


class Where(Protocol):
    """A place. `root` says that an actor there is a root of its own: its address is its bare name."""

    @property
    def root(self) -> bool: ...

    def child(
        self,
        node: Node,
        address: str,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None,
        restart: Restart,
        family: Family,
    ) -> Child:
        """The child that starts, stops and reports an actor of that kind in this place.

        `kind` and `config` are as the spawner gave them: only the process that runs the actor needs its class.
        """
        ...


@dataclass(frozen=True)
class Here:
    """In this process: messages from other actors of the process skip the bus."""

    root: bool = field(default=False, init=False)

    def child(
        self,
        node: Node,
        address: str,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None,
        restart: Restart,
        family: Family,
    ) -> Child:
        cls = node.resolve(kind)
        return Cell(node, address, cls, configured(cls, config), restart, family)


@dataclass(frozen=True)
class Process:
    """In a process of its own, which ends when this one does.

    `env` is added to its environment. `load` are Python files whose actor kinds it may run as `<stem>:<Class>`.
    `ready_timeout` bounds the time from its start to the end of the actor's `started`, in seconds. With `role` "tool"
    its user may answer for the actor and nothing else: it asks nobody and reaches no durable state.
    """

    env: dict[str, str] = field(default_factory=dict)
    load: tuple[str, ...] = ()
    ready_timeout: float = 120.0
    role: Literal["node", "tool"] = "node"
    root: bool = field(default=True, init=False)

    def child(
        self,
        node: Node,
        address: str,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None,
        restart: Restart,
        family: Family,
    ) -> Child:
        from .process import ProcessChild

        return ProcessChild(node, address, kind, config, restart, family, self)


@dataclass(frozen=True)
class OnNode:
    """On another node of the bus that accepts actors (`callboard node`), picked by what it offers.

    It has all `labels`, and `memory` bytes and `cpus` that are not promised to others; they are kept for the actor
    while it lives. Among several the one with the fewest actors is taken. With `process` the actor gets a process of
    its own there. The supervisor here restarts it on another node that fits when its own is gone, and waits for one as
    long as it takes; the first start waits `patience` seconds and then raises NoNodeFits. `ready_timeout` bounds the
    actor's own start. The node must know the kind: registered there, or loaded (`--load`).
    """

    labels: tuple[str, ...] = ()
    memory: int = 0
    cpus: float = 0.0
    process: bool = False
    patience: float = 1.0
    ready_timeout: float = 120.0
    root: bool = field(default=True, init=False)

    def child(
        self,
        node: Node,
        address: str,
        kind: type[Actor[Any]] | str,
        config: msgspec.Struct | str | None,
        restart: Restart,
        family: Family,
    ) -> Child:
        from .remote import RemoteChild

        return RemoteChild(node, address, kind, config, restart, family, self)


def where_of(spawn: Spawn) -> Where | None:
    """The place that a request to a node's control actor asks for."""
    wanted = spawn.on_node or spawn.labels or spawn.memory or spawn.cpus
    if wanted and not spawn.lease:  # with a lease, this is the node that was picked
        return OnNode(spawn.labels, spawn.memory, spawn.cpus, spawn.process)
    return Process() if spawn.process else None


def configured(kind: type[Actor[Any]], config: msgspec.Struct | str | None) -> msgspec.Struct:
    """The typed configuration of a kind from a Struct, from JSON text, or from nothing. Raises ConfigError."""
    wanted = spec_of(kind).config
    if isinstance(config, msgspec.Struct):
        if not isinstance(config, wanted):
            raise ConfigError(f"{kind.__name__} is configured by {wanted.__name__}, not by {type(config).__name__}")
        return config
    try:
        if config:
            _check_names(kind, wanted, msgspec.json.decode(config))
        return msgspec.json.decode(config or "{}", type=wanted)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"the configuration of {kind.__name__} does not fit: {error}") from error


def _check_names(kind: type[Actor[Any]], wanted: type[msgspec.Struct], given: Any) -> None:
    """A message may bring fields that nobody knows; a configuration that does was misspelt."""
    known = [field.encode_name for field in msgspec.structs.fields(wanted)]
    for name in given if isinstance(given, dict) else ():
        if name not in known:
            guess = did_you_mean(name, known)
            raise ConfigError(
                f"the configuration of {kind.__name__} has no '{name}'",
                hint=f"did you mean '{guess}'?" if guess else "it has " + (", ".join(known) or "nothing to set"),
            )
