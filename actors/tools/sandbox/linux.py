"""The few system calls that Python does not wrap, by ctypes. Each raises OSError with the call's name in it.

Imported by the process that forks sandboxes, so it needs only the standard library and costs little to import.
"""

from __future__ import annotations

import ctypes
import os
import struct

MACHINE = os.uname().machine
X86_64, AARCH64 = "x86_64", "aarch64"

# Numbers that are the same on every machine since Linux 5; the others by machine.
OPEN_TREE, MOVE_MOUNT, FSOPEN, FSCONFIG, FSMOUNT = 428, 429, 430, 431, 432
CLOSE_RANGE, OPENAT2, MOUNT_SETATTR = 436, 437, 442
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
SECCOMP = {X86_64: 317, AARCH64: 277}.get(MACHINE, -1)
PIVOT_ROOT = {X86_64: 155, AARCH64: 41}.get(MACHINE, -1)
CAPSET = {X86_64: 126, AARCH64: 91}.get(MACHINE, -1)

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 4, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 36, 38, 47, 4
# Programs that run as user 0 of the namespace get no capabilities for it, and none can be kept over a change of user;
# all of it locked (capabilities(7)).
SECURE_AND_LOCKED = 0b11101111

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x10000000, 0x20000000, 0x40000000

AT_FDCWD, AT_EMPTY_PATH, AT_RECURSIVE = -100, 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, MOVE_MOUNT_F_EMPTY_PATH = 1, os.O_CLOEXEC, 4
FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 1, 6
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC = 1, 2, 4, 8
MOUNT_ATTR_IDMAP = 0x00100000
MS_REC, MS_PRIVATE, MNT_DETACH = 0x4000, 0x40000, 2

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def call(what: str, number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by its number. Integers go as 64 bits, bytes as a pointer."""
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _LIBC.syscall(ctypes.c_long(number), *given)
    if result < 0:
        raise _failed(what)
    return result


def prctl(option: int, value: int = 0, third: int = 0) -> int:
    result = _LIBC.prctl(ctypes.c_int(option), *(ctypes.c_ulong(a) for a in (value, third, 0, 0)))
    if result < 0:
        raise _failed(f"prctl({option})")
    return result


def unshare(flags: int) -> None:
    if _LIBC.unshare(ctypes.c_int(flags)) != 0:
        raise _failed("unshare")


def sethostname(name: bytes) -> None:
    if _LIBC.sethostname(name, ctypes.c_size_t(len(name))) != 0:
        raise _failed("sethostname")


def make_mounts_private() -> None:
    """What is mounted from here on stays in this mount namespace."""
    if _LIBC.mount(None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None) != 0:
        raise _failed("mount(private)")


def new_mount(kind: bytes, attributes: int, **options: str) -> int:
    """A file system of that kind, mounted nowhere yet."""
    context = call("fsopen", FSOPEN, kind, 1)
    try:
        for key, value in options.items():
            call(f"fsconfig({key})", FSCONFIG, context, FSCONFIG_SET_STRING, key.encode(), value.encode(), 0)
        call("fsconfig(create)", FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return call("fsmount", FSMOUNT, context, 1, attributes)
    finally:
        os.close(context)


def clone_tree(path: str) -> int:
    """A copy of the mounts at `path`, mounted nowhere yet."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE
    return call(f"open_tree({path})", OPEN_TREE, AT_FDCWD, os.fsencode(path), flags)


def set_mount_attributes(descriptor: int, attributes: int, *, recursive: bool, user_namespace: int = 0) -> None:
    """For a mount, and with `recursive` those below. `user_namespace`: of MOUNT_ATTR_IDMAP."""
    order = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    call("mount_setattr", MOUNT_SETATTR, descriptor, b"", flags, order, len(order))


def attach(descriptor: int, path: str) -> None:
    flags = MOVE_MOUNT_F_EMPTY_PATH
    call(f"move_mount({path})", MOVE_MOUNT, descriptor, b"", AT_FDCWD, os.fsencode(path), flags)


def enter_root(path: str) -> None:
    """Make `path` the root of this mount namespace and let go of the old one (the last note of pivot_root(2))."""
    os.chdir(path)
    call("pivot_root", PIVOT_ROOT, b".", b".")
    if _LIBC.umount2(b".", MNT_DETACH) != 0:
        raise _failed("umount2")
    os.chdir("/")


def open_beneath(folder: int, name: str, flags: int, mode: int = 0) -> int:
    """Open what is truly below `folder`: no symbolic link, no other mount, no way up (openat2(2))."""
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC | os.O_NOFOLLOW, mode, resolve)
    return call(f"open {name!r}", OPENAT2, folder, os.fsencode(name), how, len(how))


def close_from(first: int) -> None:
    """Every descriptor from that one on."""
    call("close_range", CLOSE_RANGE, first, 0xFFFFFFFF, 0)


def drop_capabilities() -> None:
    """All sets, the bounding one too, and what could bring any back."""
    prctl(PR_SET_SECUREBITS, SECURE_AND_LOCKED)
    last = 0
    while True:
        try:
            prctl(PR_CAPBSET_DROP, last)
        except OSError:
            break  # EINVAL: the kernel knows none of that number
        last += 1
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    clear_capabilities()


def clear_capabilities() -> None:
    """The permitted, effective and inheritable sets; needs no capability."""
    header = struct.pack("=Ii", 0x20080522, 0)
    call("capset", CAPSET, header, struct.pack("=6I", *([0] * 6)))
