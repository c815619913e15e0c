"""The filter on system calls: what syscalls.py names, and of a few calls only harmless forms.

A small assembler for classic BPF (seccomp(2)). The machine is checked first, so neither 32-bit calls (`int 0x80`) nor
the x32 numbers get to the tables; both end the process. The kernel remembers which calls are always allowed, so the
length of the list costs nothing per call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from . import linux
from .syscalls import ALLOWED, ON_SHARED_FILES, WITH_ARGUMENTS

_AUDIT_ARCH = {linux.X86_64: 0xC000003E, linux.AARCH64: 0xC00000B7}
_X32_BIT = 0x40000000

_LOAD, _JEQ, _JGE, _AND, _RET = 0x20, 0x15, 0x35, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_SET_MODE_FILTER, _TSYNC = 1, 1

_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_CLONE_NEW = (
    linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
)
# Of terminals and files: what size, how much, non-blocking, close-on-exec. TIOCSTI and its kind are not among them.
_IOCTLS = (0x5401, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PDEATHSIG, GET_DUMPABLE, SET_DUMPABLE, SET_NAME, GET_NAME, GET_SECCOMP, CAPBSET_READ, SET_NO_NEW_PRIVS,
# GET_NO_NEW_PRIVS, SET_VMA
_PRCTLS = (1, 3, 4, 15, 16, 21, 23, 38, 39, 0x53564D41)
_PERSONALITIES = (0, 0xFFFFFFFF)


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _return(action: int) -> bytes:
    return _instruction(_RET, action)


def _argument(index: int, high: bool = False) -> bytes:
    """Load the low half of an argument (both machines are little-endian), or its high half."""
    return _instruction(_LOAD, 16 + 8 * index + (4 if high else 0))


def _only(call: int, body: list[bytes]) -> list[bytes]:
    """`body` for that call; it must end in a return."""
    return [_instruction(_JEQ, call, 0, len(body)), *body]


def _one_of(values: tuple[int, ...], index: int, otherwise: int) -> list[bytes]:
    """Allow where the low half of the argument is one of these. The kernel reads these arguments as 32 bits."""
    body = [_argument(index)]
    for value in values:
        body += [_instruction(_JEQ, value, 0, 1), _return(_ALLOW)]
    return [*body, _return(_ERRNO | otherwise)]


def program(machine: str, *, own_files: bool = True) -> bytes:
    """The whole filter. `own_files`: no file of the host is in sight. KeyError where the machine is not known."""
    special = WITH_ARGUMENTS[machine]
    code = [
        _instruction(_LOAD, 4),
        _instruction(_JEQ, _AUDIT_ARCH[machine], 1, 0),
        _return(_KILL_PROCESS),
        _instruction(_LOAD, 0),
    ]
    if machine == linux.X86_64:
        code += [_instruction(_JGE, _X32_BIT, 0, 1), _return(_KILL_PROCESS)]
    refuse = _return(_ERRNO | errno.EPERM)
    for name, number in ALLOWED[machine].items():
        allowed = own_files or name not in ON_SHARED_FILES
        code += [_instruction(_JEQ, number, 0, 1), _return(_ALLOW) if allowed else refuse]
    # A datagram socket could be pointed at another address by sendmsg; a connected stream cannot.
    code += _only(
        special["socketpair"],
        [
            _argument(0),
            _instruction(_JEQ, _AF_UNIX, 1, 0),
            refuse,
            _argument(1),
            _instruction(_AND, _SOCK_TYPE_MASK),
            _instruction(_JEQ, _SOCK_STREAM, 1, 0),
            refuse,
            _return(_ALLOW),
        ],
    )
    code += _only(
        special["clone"],
        [_argument(0), _instruction(_AND, _CLONE_NEW), _instruction(_JEQ, 0, 1, 0), refuse, _return(_ALLOW)],
    )
    code += _only(special["ioctl"], _one_of(_IOCTLS, 1, errno.ENOTTY))
    code += _only(special["prctl"], _one_of(_PRCTLS, 0, errno.EINVAL))
    code += _only(special["personality"], _one_of(_PERSONALITIES, 0, errno.EPERM))
    code += _only(special["prlimit64"], _one_of((0,), 0, errno.EPERM))  # of another process: not even to read
    # EPERM, not ENOSYS, for what programs try and report: a person reads "not permitted" more easily.
    for number in _REFUSED.get(machine, ()):
        code += _only(number, [refuse])
    code.append(_return(_ERRNO | errno.ENOSYS))
    return b"".join(code)


# socket, connect, accept, bind, listen; mount, umount2, chroot, unshare, setns, ptrace, execveat.
_REFUSED = {
    linux.X86_64: (41, 42, 43, 49, 50, 165, 166, 161, 272, 308, 101, 322),
    linux.AARCH64: (198, 203, 202, 200, 201, 40, 39, 51, 97, 268, 117, 281),
}


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def install(code: bytes) -> None:
    """For this process and all that it starts, for ever. NO_NEW_PRIVS must be set."""
    given = _Program(len(code) // 8, code)
    result = linux.call("seccomp", linux.SECCOMP, _SET_MODE_FILTER, _TSYNC, ctypes.string_at(ctypes.byref(given), 16))
    if result != 0:
        raise OSError(errno.EAGAIN, f"seccomp: thread {result} did not take the filter ({os.getpid()})")
