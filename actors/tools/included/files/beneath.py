"""Open a path below a folder so that nothing on the way can lead out of it, whoever changes the folder meanwhile.

Linux decides this in one system call, openat2 with RESOLVE_BENEATH. Where it is missing (macOS, a kernel before 5.6, a
container that forbids it) the path is walked component by component through descriptors, and every symbolic link on it
is refused, also one that would stay inside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import stat
import sys

from ...errors import ToolError

_OPENAT2 = 437  # of every architecture: it is younger than the common table
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
# Something changed on the way while the kernel looked; it asks to be asked again.
_TRIES = 16
_LINKS = (errno.EXDEV, errno.ELOOP)


class FileRefused(ToolError):
    """A path that leads out of the folders that may be read, or is no file."""

    code = "tool.files"


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_beneath(folder: int, path: str, *, directory: bool = False) -> int:
    """A descriptor for reading `path` below the open `folder`; the caller closes it. Raises FileRefused.

    Only regular files, or folders with `directory`: opening a pipe or a device is refused, and does not block.
    """
    if "\0" in path:
        raise FileRefused("a path has no NUL characters")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | (os.O_DIRECTORY if directory else 0)
    try:
        descriptor = _open(folder, path or ".", flags)
    except OSError as error:
        raise _refusal(path, error) from error
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISDIR(mode) if directory else stat.S_ISREG(mode)):
        os.close(descriptor)
        raise FileRefused(f"'{path}' is {'no folder' if directory else 'no regular file'}")
    return descriptor


def _open(folder: int, path: str, flags: int) -> int:
    if has_openat2():
        return _openat2(folder, path, flags)
    return walk_beneath(folder, path, flags)


@functools.cache
def has_openat2() -> bool:
    """Whether this kernel lets this process use openat2."""
    if sys.platform != "linux":
        return False
    try:
        os.close(_openat2(os.open(".", os.O_RDONLY | os.O_CLOEXEC), ".", os.O_RDONLY | os.O_CLOEXEC, owned=True))
    except OSError:
        return False
    return True


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _openat2(folder: int, path: str, flags: int, *, owned: bool = False) -> int:
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    try:
        for _ in range(_TRIES):
            found = _libc().syscall(
                ctypes.c_long(_OPENAT2),
                ctypes.c_int(folder),
                ctypes.c_char_p(os.fsencode(path)),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if found >= 0:
                return found
            number = ctypes.get_errno()
            if number != errno.EAGAIN:
                raise OSError(number, os.strerror(number))
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    finally:
        if owned:
            os.close(folder)


def walk_beneath(folder: int, path: str, flags: int) -> int:
    """The same without openat2: no `..`, no absolute path, no symbolic link at all. Raises OSError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    with contextlib.ExitStack() as stack:
        current = folder
        for part in parts[:-1]:
            current = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            stack.callback(os.close, current)
        return os.open(parts[-1] if parts else ".", flags | os.O_NOFOLLOW, dir_fd=current)


def _refusal(path: str, error: OSError) -> FileRefused:
    if error.errno in _LINKS:
        return FileRefused(f"'{path}' leads out of the folder", hint="give a path below it, without '..' and links out")
    if error.errno == errno.ENOENT:
        return FileRefused(f"there is no '{path}'", hint="list or search shows what is there")
    return FileRefused(f"'{path}' cannot be opened: {error.strerror}")
