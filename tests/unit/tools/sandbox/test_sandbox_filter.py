"""The filter on system calls, run by a small interpreter of BPF, so also for machines that are not at hand."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from callboard.actors.tools.sandbox import linux, seccomp
from callboard.actors.tools.sandbox.syscalls import ALLOWED, ON_SHARED_FILES, WITH_ARGUMENTS

_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL = "allow", "kill"
_MACHINES = pytest.mark.parametrize("machine", ["x86_64", "aarch64"])


def _outcome(machine: str, number: int, *arguments: int, arch: int = 0, own_files: bool = True) -> str | int:
    """What the filter says of a call: allowed, killed, or the error."""
    given = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, *[0] * 6)][:6]
    data = struct.pack("<iIQ6Q", number, arch or _ARCH[machine], 0, *given)
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine, own_files=own_files)))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, value = code[at]
        at += 1
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, value)
            case 0x54:
                accumulator &= value
            case 0x15:
                at += if_true if accumulator == value else if_false
            case 0x35:
                at += if_true if accumulator >= value else if_false
            case 0x06:
                return {0x7FFF0000: _ALLOW, 0x80000000: _KILL}.get(value) or value & 0xFFFF
            case _:
                raise AssertionError(f"operation {operation:#x}")


@_MACHINES
def test_named_calls_are_allowed_and_no_others(machine: str) -> None:
    allowed = set(ALLOWED[machine].values())
    special = set(WITH_ARGUMENTS[machine].values())
    for number in range(600):
        if number not in special:
            outcome = _outcome(machine, number)
            assert outcome == _ALLOW if number in allowed else outcome in (errno.ENOSYS, errno.EPERM), number


@_MACHINES
def test_calls_of_another_machine_end_the_process(machine: str) -> None:
    for arch in (0x40000003, 0x40000028, 0xC0000015, 0xC00000F3):  # i386, arm, ppc64, riscv64
        assert _outcome(machine, ALLOWED[machine]["read"], arch=arch) == _KILL
    if machine == "x86_64":
        assert _outcome(machine, 0x40000000) == _KILL
        assert _outcome(machine, -1) == _KILL


@_MACHINES
def test_arguments_are_looked_at_as_the_kernel_reads_them(machine: str) -> None:
    calls = WITH_ARGUMENTS[machine]
    high = 1 << 32  # bits that the kernel does not look at
    assert _outcome(machine, calls["socketpair"], 1, 1) == _ALLOW
    assert _outcome(machine, calls["socketpair"], 1, 1 | 0o2000000) == _ALLOW  # SOCK_CLOEXEC
    for family, kind in ((1, 2), (1, 5), (2, 1), (16, 3), (1 | high, 2), (2 | high, 1)):
        assert _outcome(machine, calls["socketpair"], family, kind) == errno.EPERM
    assert _outcome(machine, calls["clone"], 0x01200011) == _ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert _outcome(machine, calls["clone"], flag | 17) == errno.EPERM
        assert _outcome(machine, calls["clone"], flag | 17 | high) == errno.EPERM
    assert _outcome(machine, calls["ioctl"], 0, 0x5401) == _ALLOW
    for request in (0x5412, 0x541C, 0x5412 | high, 0x5423, 0x8901):
        assert _outcome(machine, calls["ioctl"], 0, request) == errno.ENOTTY
    assert _outcome(machine, calls["prlimit64"], 0, 7) == _ALLOW
    assert _outcome(machine, calls["prlimit64"], 1, 7) == errno.EPERM
    assert _outcome(machine, calls["personality"], 0xFFFFFFFF) == _ALLOW
    assert _outcome(machine, calls["personality"], 0x0400000) == errno.EPERM
    assert _outcome(machine, calls["prctl"], 15) == _ALLOW
    assert _outcome(machine, calls["prctl"], 22) == errno.EINVAL  # PR_SET_SECCOMP


@_MACHINES
def test_what_landlock_does_not_hold_is_refused_on_shared_files(machine: str) -> None:
    for name in ON_SHARED_FILES & set(ALLOWED[machine]):
        assert _outcome(machine, ALLOWED[machine][name]) == _ALLOW
        assert _outcome(machine, ALLOWED[machine][name], own_files=False) == errno.EPERM


@_MACHINES
def test_program_is_one_that_the_kernel_takes(machine: str) -> None:
    code = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    assert len(code) <= 4096
    assert code[-1][0] == 0x06
    for at, (_, if_true, if_false, _) in enumerate(code[:-1]):
        assert at + 1 + max(if_true, if_false) < len(code)


def test_numbers_are_those_of_the_kernels_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    real = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    ours = {**ALLOWED["x86_64"], **WITH_ARGUMENTS["x86_64"]}
    assert {name: real[name] for name in ours if name in real} == {name: ours[name] for name in ours if name in real}
    assert (real["seccomp"], real["pivot_root"], real["capset"]) == (linux.SECCOMP, linux.PIVOT_ROOT, linux.CAPSET)
