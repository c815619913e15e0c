"""The parts of the kernel that the sandbox stands on, each with a name that a configuration can accept to lack."""

from __future__ import annotations

import enum
from typing import NamedTuple


class Part(enum.StrEnum):
    LINUX = "linux"
    USER_NAMESPACE = "user_namespace"
    PID_NAMESPACE = "pid_namespace"
    NETWORK_NAMESPACE = "network_namespace"
    IPC_NAMESPACE = "ipc_namespace"
    MOUNT_NAMESPACE = "mount_namespace"
    PRIVATE_PROC = "private_proc"
    SECCOMP = "seccomp"
    LANDLOCK = "landlock"
    LANDLOCK_NETWORK = "landlock_network"
    LANDLOCK_SCOPES = "landlock_scopes"


WHAT_FOR = {
    Part.LINUX: "every other part",
    Part.USER_NAMESPACE: "the other namespaces without being root, and the limit on processes",
    Part.PID_NAMESPACE: "seeing and signalling no process outside, and ending all inside at once",
    Part.NETWORK_NAMESPACE: "no network devices at all",
    Part.IPC_NAMESPACE: "no shared memory or queues with processes outside",
    Part.MOUNT_NAMESPACE: "a file system of its own, and a hard limit on scratch space",
    Part.PRIVATE_PROC: "a /proc that shows only the sandbox",
    Part.SECCOMP: "no sockets, no namespaces, and few ways into the kernel",
    Part.LANDLOCK: "files: only the interpreter, the data that is given, and the scratch folder",
    Part.LANDLOCK_NETWORK: "a second lock on TCP",
    Part.LANDLOCK_SCOPES: "a second lock on signals and abstract sockets",
}

# Which parts each of these cannot do without.
_RESTS_ON = {
    Part.PID_NAMESPACE: {Part.USER_NAMESPACE},
    Part.NETWORK_NAMESPACE: {Part.USER_NAMESPACE},
    Part.IPC_NAMESPACE: {Part.USER_NAMESPACE},
    Part.MOUNT_NAMESPACE: {Part.USER_NAMESPACE},
    Part.PRIVATE_PROC: {Part.MOUNT_NAMESPACE, Part.PID_NAMESPACE},
    Part.LANDLOCK_NETWORK: {Part.LANDLOCK},
    Part.LANDLOCK_SCOPES: {Part.LANDLOCK},
}


class Kernel(NamedTuple):
    """What is here. `landlock_abi` 0: none. `why`: what the kernel said of each part that is not."""

    parts: frozenset[Part]
    landlock_abi: int = 0
    why: tuple[tuple[Part, str], ...] = ()

    def without(self, *parts: Part) -> Kernel:
        """The same with those parts, and what rests on them, taken away."""
        gone = set(parts)
        while more := {part for part, bases in _RESTS_ON.items() if bases & gone} - gone:
            gone |= more
        version = self.landlock_abi
        if Part.LANDLOCK_SCOPES in gone:
            version = min(version, 5)
        if Part.LANDLOCK_NETWORK in gone:
            version = min(version, 3)
        if Part.LANDLOCK in gone:
            version = 0
        reasons = {**dict(self.why), **dict.fromkeys(gone & self.parts, "left out")}
        return Kernel(self.parts - gone, version, tuple(sorted(reasons.items())))

    @property
    def lacking(self) -> tuple[Part, ...]:
        return tuple(part for part in Part if part not in self.parts)

    def reason(self, part: Part) -> str:
        return dict(self.why).get(part, "")
