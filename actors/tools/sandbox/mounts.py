"""The file system of a sandbox: an empty root with the interpreter, the libraries and the data mounted read-only.

Everything keeps its path, so a process that was forked outside goes on working; what is not mounted is not there.
The scratch space is a file system of its own in memory, with its size fixed: `/box/work` for results, `/box/tmp` for
what is thrown away, `/box/out` for what the sandbox's own code hands out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable

from . import linux
from .namespaces import INNER_ID
from .parts import Part

BOX = "/box"
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
FOLDERS = ("work", "tmp", "out")

_READ_ONLY = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV
# Where the new root is put together: a folder that every system has, hidden below the new mount only for us.
_STAGE = "/tmp"


class Held:
    """Copies of mounts that are attached nowhere yet, by path. Made before root becomes nobody, else after entering."""

    def __init__(self) -> None:
        self._trees: dict[str, int] = {}

    def take(self, paths: Iterable[str], owner_shift: int | None = None) -> None:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                self._trees[path] = _take(path, owner_shift)

    def has_below(self, folder: str) -> bool:
        return any(path.startswith(f"{folder}/") for path in self._trees)

    def attach_below(self, root: str) -> None:
        for path, tree in sorted(self._trees.items()):  # parents first
            target = root + path
            _place(target, os.fstat(tree).st_mode)
            linux.attach(tree, target)
            os.close(tree)
        self._trees.clear()


def _take(path: str, owner_shift: int | None) -> int:
    tree = linux.clone_tree(path)
    try:
        # Devices are for reading and writing and must stay devices.
        attributes = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NOEXEC if path in DEVICES else _READ_ONLY
        linux.set_mount_attributes(tree, attributes, recursive=True)
        if owner_shift is not None and path not in DEVICES:
            # Some file systems cannot: there, root's private files stay unreadable.
            with contextlib.suppress(OSError):
                linux.set_mount_attributes(tree, linux.MOUNT_ATTR_IDMAP, recursive=False, user_namespace=owner_shift)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _place(target: str, mode: int) -> None:
    """Something to mount on."""
    if stat.S_ISDIR(mode):
        os.makedirs(target, 0o755, exist_ok=True)
    elif not os.path.lexists(target):
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def build(
    held: Held, links: Iterable[tuple[str, str]], parts: Collection[Part], scratch_bytes: int, scratch_files: int
) -> int:
    """Make the root and enter it; gives the open scratch folder. In the first process of the new pid namespace.

    `links`: symbolic links that the root of many systems has, as `/bin` to `usr/bin`.
    """
    linux.make_mounts_private()
    root = linux.new_mount(
        b"tmpfs", linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC, size="1m", mode="0755"
    )
    linux.attach(root, _STAGE)
    os.makedirs(_STAGE + BOX)
    os.makedirs(f"{_STAGE}/proc")
    os.makedirs(f"{_STAGE}/dev")
    quiet = linux.MOUNT_ATTR_NOSUID | linux.MOUNT_ATTR_NODEV | linux.MOUNT_ATTR_NOEXEC
    scratch = linux.new_mount(
        b"tmpfs",
        quiet,
        size=str(scratch_bytes),
        nr_inodes=str(scratch_files),
        mode="0700",
        uid=str(INNER_ID),
        gid=str(INNER_ID),
    )
    linux.attach(scratch, _STAGE + BOX)
    os.close(scratch)
    os.makedirs(f"{_STAGE}{BOX}/tmp", 0o700)
    if held.has_below("/tmp"):
        # Data that was given is there: a folder of ours, with that data mounted in it.
        os.makedirs(f"{_STAGE}/tmp")
        temporary = linux.clone_tree(f"{_STAGE}{BOX}/tmp")
        linux.attach(temporary, f"{_STAGE}/tmp")
        os.close(temporary)
    else:
        os.symlink(f"{BOX}/tmp", f"{_STAGE}/tmp")
    held.attach_below(_STAGE)
    for path, target in links:
        if not os.path.lexists(_STAGE + path):
            os.makedirs(os.path.dirname(_STAGE + path), 0o755, exist_ok=True)
            os.symlink(target, _STAGE + path)
    os.symlink(f"{BOX}/tmp", f"{_STAGE}/dev/shm")
    if Part.PRIVATE_PROC in parts:
        # Not `hidepid`: a process that forbids to be traced would be hidden from the warden too.
        proc = linux.new_mount(b"proc", quiet | linux.MOUNT_ATTR_RDONLY, subset="pid")
        linux.attach(proc, f"{_STAGE}/proc")
        os.close(proc)
    linux.set_mount_attributes(root, quiet | linux.MOUNT_ATTR_RDONLY, recursive=False)
    os.close(root)
    linux.enter_root(_STAGE)
    return open_scratch(BOX)


def open_scratch(path: str) -> int:
    """The open scratch folder, with its three folders in it."""
    for name in FOLDERS:
        os.makedirs(f"{path}/{name}", 0o700, exist_ok=True)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
