"""Where an actor lives: in this process, in one of its own, on another node, in Ray. A place makes a `Child`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from ..schemas.runtime import RayPlace, Spawn
from .actor import kind_name, spec_of
from .cell import Cell
from .errors import ConfigError
from .family import Child, Family
from .matching import did_you_mean
from .messages import UNDECODABLE
from .supervision import Restart

if TYPE_CHECKING:
    from .actor import Actor
    from .node import Node


# How long Ray's driver has to find the cluster; Ray itself would try for more than a minute.
RAY_CONNECT_TIMEOUT_S = 30.0
# Beyond all that it waits for, how long the driver may take to start and to say how it went.
RAY_GRACE_S = 10.0


@dataclass(frozen=True)
class ChildSpec:
    """An actor to be, and the family that looks after it.

    `kind` and `config` are as the spawner gave them: only the process that runs the actor needs its class.
    """

    node: Node
    address: str
    kind: type[Actor[Any]] | str
    config: msgspec.Struct | str | None
    restart: Restart
    family: Family

    @property
    def kind_name(self) -> str:
        return self.kind if isinstance(self.kind, str) else kind_name(self.kind)

    @property
    def config_text(self) -> str:
        """As JSON."""
        return self.config if isinstance(self.config, str) else msgspec.json.encode(self.config or {}).decode()


class Where(Protocol):
    """A place. `root` says that an actor there is a root of its own: its address is its bare name."""

    @property
    def root(self) -> bool: ...

    def child(self, spec: ChildSpec) -> Child:
        """The child that starts, stops and reports that actor in this place."""
        ...


@dataclass(frozen=True)
class Here:
    """In this process: messages from other actors of the process skip the bus."""

    root: bool = field(default=False, init=False)

    def child(self, spec: ChildSpec) -> Child:
        cls = spec.node.resolve(spec.kind)
        return Cell(spec.node, spec.address, cls, configured(cls, spec.config), spec.restart, spec.family)


@dataclass(frozen=True)
class Process:
    """In a process of its own, which ends when this one does.

    `env` is added to its environment. `load` are Python files whose actor kinds it may run as `<stem>:<Class>`, `allow`
    are modules that it may run them from.
    `ready_timeout` bounds the time from its start to the end of the actor's `started`, in seconds. With `role` "tool"
    its user may answer for the actor and nothing else: it asks nobody but the actors of `asks` and reaches no durable
    state. `python` is the
    interpreter (default: this one); callboard must be importable there, in this release.
    """

    env: dict[str, str] = field(default_factory=dict)
    load: tuple[str, ...] = ()
    ready_timeout: float = 120.0
    role: Literal["node", "tool"] = "node"
    asks: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    python: str = ""
    root: bool = field(default=True, init=False)

    def child(self, spec: ChildSpec) -> Child:
        from .process import ProcessChild

        return ProcessChild(spec, self)


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

    def child(self, spec: ChildSpec) -> Child:
        from .remote import RemoteChild

        return RemoteChild(spec, self)


@dataclass(frozen=True)
class Ray:
    """In a process of its own that a Ray cluster finds room for: it needs the extra `cluster`.

    It has `num_cpus`, `num_gpus`, `memory` bytes and Ray's other `resources` to itself as far as Ray sees to that.
    `address` is that of the cluster, as `ray.init` takes it: "auto" is the one that `RAY_ADDRESS` names, or that this
    machine is part of. None is started. `env` and `load` are as for `Process`; the files of `load` must lie under the
    same path on each Ray node, and this release of callboard must be installed there. The first start raises
    NoNodeFits where there is no room within `patience` seconds, and NotReachable where no cluster answers; a restart
    waits for both as long as it takes. `ready_timeout` bounds what comes after: the start of Ray's process there, and
    the actor's own.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    address: str = "auto"
    env: dict[str, str] = field(default_factory=dict)
    load: tuple[str, ...] = ()
    patience: float = 15.0
    ready_timeout: float = 120.0
    root: bool = field(default=True, init=False)

    def child(self, spec: ChildSpec) -> Child:
        from .ray_child import RayChild

        return RayChild(spec, self)

    def __post_init__(self) -> None:
        wanted = {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "memory": self.memory, **self.resources}
        for name, amount in wanted.items():
            if amount < 0:
                raise ConfigError(f"an actor cannot have {amount:g} of {name} on a Ray cluster")

    @property
    def start_timeout(self) -> float:
        """The longest that its first start takes, in seconds."""
        return RAY_CONNECT_TIMEOUT_S + self.patience + self.ready_timeout + RAY_GRACE_S

    def ordered(self) -> RayPlace:
        """What a request to a node's control actor says of it. Raises ConfigError for what cannot be said there."""
        if self.env or self.load:
            raise ConfigError(
                "who asks the daemon for an actor on Ray cannot set its env or load",
                hint="the company file can, and so can an actor that spawns it",
            )
        resources = tuple(sorted(self.resources.items()))
        return RayPlace(
            *(self.address, self.num_cpus, self.num_gpus, self.memory, resources, self.patience, self.ready_timeout)
        )

    @classmethod
    def of(cls, place: RayPlace) -> Ray:
        return cls(**{**msgspec.structs.asdict(place), "resources": dict(place.resources)})


def where_of(spawn: Spawn) -> Where | None:
    """The place that a request to a node's control actor asks for. Raises ConfigError."""
    wanted = spawn.on_node or spawn.labels or spawn.memory or spawn.cpus
    if (spawn.role != "node" or spawn.asks) and (wanted or spawn.ray is not None or not spawn.process):
        raise ConfigError(f"the role {spawn.role} is for a process of the actor's own on this node")
    if wanted and not spawn.lease:  # with a lease, this is the node that was picked
        return OnNode(spawn.labels, spawn.memory, spawn.cpus, spawn.process)
    if spawn.ray is not None:
        return Ray.of(spawn.ray)
    return Process(role=spawn.role, asks=spawn.asks) if spawn.process else None


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
    except UNDECODABLE as error:
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
