"""Landlock: which files may be read, run and written, no TCP, and no signal or abstract socket out of the sandbox.

Rights that the kernel's version does not know are left out; what must be known is decided before, from `Kernel`.
See landlock(7).
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterable

from . import linux

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_FIRST_ABI, _REFER, _TRUNCATE, _IOCTL_DEV = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15
_BIND_TCP, _CONNECT_TCP = 1, 2
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2
_VERSION_FLAG, _RULE_PATH_BENEATH = 1, 1

NETWORK_ABI, SCOPES_ABI = 4, 6

READ = _READ_FILE | _READ_DIR
LIST = _READ_DIR
RUN = READ | _EXECUTE
DEVICE = _READ_FILE | _WRITE_FILE
_OF_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV


def abi() -> int:
    """0: this kernel has no Landlock, or it is switched off."""
    try:
        return linux.call("landlock_create_ruleset", linux.LANDLOCK_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def _handled(version: int) -> int:
    handled = _FIRST_ABI
    for least, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        if version >= least:
            handled |= right
    return handled


def write_rights(version: int) -> int:
    """In the scratch folder: all but running what lies there, devices, sockets and device controls."""
    return _handled(version) & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK | _MAKE_SOCK | _IOCTL_DEV)


def restrict(rules: Iterable[tuple[str, int]], version: int) -> None:
    """For this process and all that it starts. `rules`: a path and what may be done at and below it.

    A path that does not exist is left out: there is nothing to allow. NO_NEW_PRIVS must be set.
    """
    handled = _handled(version)
    network = _BIND_TCP | _CONNECT_TCP if version >= NETWORK_ABI else 0
    scopes = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if version >= SCOPES_ABI else 0
    wanted = struct.pack("=QQQ", handled, network, scopes)
    size = 24 if version >= SCOPES_ABI else 16 if version >= NETWORK_ABI else 8
    ruleset = linux.call("landlock_create_ruleset", linux.LANDLOCK_CREATE_RULESET, wanted, size, 0)
    try:
        for path, rights in rules:
            with contextlib.suppress(FileNotFoundError):
                _allow(ruleset, path, rights & handled)
        linux.call("landlock_restrict_self", linux.LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        rule = struct.pack("=Qi", rights, descriptor)
        linux.call(f"landlock_add_rule({path})", linux.LANDLOCK_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)
