"""A program that tries the parts of the kernel, each in a child, and prints what it found as JSON (kernel.py)."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from . import landlock, linux, mounts, namespaces, seccomp
from .parts import Part


def _attempt(*steps: Callable[[], object]) -> str:
    """Do the steps in a child; "" where all went well, else what the kernel said."""
    inward, outward = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for step in steps:
                step()
        except (OSError, KeyError) as error:
            os.write(outward, str(error).encode()[:300] or b"failed")
        finally:
            os._exit(0)
    os.close(outward)
    said = bytearray()
    while piece := os.read(inward, 1000):
        said += piece
    os.close(inward)
    _, status = os.waitpid(child, 0)
    return bytes(said).decode(errors="replace") or (f"ended with {status}" if status else "")


def _as_plain_user() -> None:
    if os.geteuid() == 0:
        namespaces.become_nobody()


def _enter(*parts: Part) -> Callable[[], None]:
    return lambda: namespaces.enter([Part.USER_NAMESPACE, *parts])


def _in_child(step: Callable[[], object]) -> Callable[[], None]:
    """As the first process of a pid namespace that was just made."""

    def run() -> None:
        said = _attempt(step)
        if said:
            raise OSError(said)

    return run


def _own_tree() -> None:
    linux.make_mounts_private()
    held = mounts.Held()
    held.take(["/usr", "/dev/null"])
    os.close(mounts.build(held, [], [], 1 << 20, 100))


def _own_proc() -> None:
    linux.make_mounts_private()
    held = mounts.Held()
    held.take(["/dev/null"])
    os.close(mounts.build(held, [], [Part.PRIVATE_PROC], 1 << 20, 100))
    os.stat("/proc/self/stat")


def _filter() -> None:
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.install(seccomp.program(linux.MACHINE))


def main() -> None:
    space = Part.USER_NAMESPACE
    outcomes = {
        space: _attempt(_as_plain_user, _enter()),
        Part.PID_NAMESPACE: _attempt(_as_plain_user, _enter(Part.PID_NAMESPACE), _in_child(os.getpid)),
        Part.NETWORK_NAMESPACE: _attempt(_as_plain_user, _enter(Part.NETWORK_NAMESPACE)),
        Part.IPC_NAMESPACE: _attempt(_as_plain_user, _enter(Part.IPC_NAMESPACE)),
        Part.MOUNT_NAMESPACE: _attempt(_as_plain_user, _enter(Part.MOUNT_NAMESPACE), _own_tree),
        Part.PRIVATE_PROC: _attempt(
            _as_plain_user, _enter(Part.MOUNT_NAMESPACE, Part.PID_NAMESPACE), _in_child(_own_proc)
        ),
        Part.SECCOMP: _attempt(_filter),
    }
    version = landlock.abi()
    if version == 0:
        outcomes[Part.LANDLOCK] = "the kernel has it not, or it is switched off"
    for part, least in ((Part.LANDLOCK_NETWORK, landlock.NETWORK_ABI), (Part.LANDLOCK_SCOPES, landlock.SCOPES_ABI)):
        if version < least:
            outcomes[part] = f"needs Landlock {least}, here is {version}"
    json.dump({"landlock_abi": version, "why": {part: text for part, text in outcomes.items() if text}}, sys.stdout)


if __name__ == "__main__":
    main()
