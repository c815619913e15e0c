"""Entering namespaces of our own, as root or as a plain user, and giving up what is left of privilege.

Root first becomes nobody, after it has taken hold of what is to be mounted (mounts.py); from there on both are the
same: a user without rights outside, who is mapped to one user within.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from . import linux
from .parts import Part

# Who code in the sandbox seems to be.
INNER_ID = 1000
# Who it is outside when root starts it: "nobody" on every distribution, the kernel's own overflow id.
NOBODY = 65534

_FLAGS = {
    Part.USER_NAMESPACE: linux.CLONE_NEWUSER,
    Part.PID_NAMESPACE: linux.CLONE_NEWPID,
    Part.NETWORK_NAMESPACE: linux.CLONE_NEWNET,
    Part.IPC_NAMESPACE: linux.CLONE_NEWIPC | linux.CLONE_NEWUTS,
    Part.MOUNT_NAMESPACE: linux.CLONE_NEWNS,
}


def become_nobody() -> None:
    """From root to a user without rights. What this process holds open stays open."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else /proc/self belongs to root, and no ids can be mapped


def enter(parts: Collection[Part]) -> None:
    """Unshare them. A new pid namespace holds from the next fork on. Single-threaded callers only."""
    flags = 0
    for part, flag in _FLAGS.items():
        if part in parts:
            flags |= flag
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(flags)
    if Part.USER_NAMESPACE in parts:
        map_ids(uid, gid)


def map_ids(uid: int, gid: int) -> None:
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INNER_ID} {uid} 1")
    _write("/proc/self/gid_map", f"{INNER_ID} {gid} 1")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def owner_shift() -> int:
    """A user namespace in which root's files are nobody's: what mounts are shown through to a sandbox of root.

    Only root may call this. The namespace is that of a child, which ends when this has hold of it.
    """
    ready, release = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            linux.unshare(linux.CLONE_NEWUSER)
            os.write(ready[1], b"1")
            os.close(release[1])
            os.read(release[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    os.close(release[0])
    try:
        if not os.read(ready[0], 1):
            raise OSError(1, "user namespace: not permitted")
        for kind in ("uid_map", "gid_map"):
            _write(f"/proc/{child}/{kind}", f"0 {NOBODY} 1")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready[0])
        os.close(release[1])
        os.waitpid(child, 0)
