"""What a sandbox is given and how much it may use."""

from __future__ import annotations

from typing import Annotated

import msgspec

from .parts import Part

MIB = 1 << 20


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of one call, in seconds, bytes and counts; each is held by who is named.

    `wall_s`, `cpu_s` (all processes together), `memory` (likewise): the warden, which looks every 20 ms.
    `address_space`, `file_bytes` (one file), `open_files` (a process): the kernel. `processes`, with their threads: the
    kernel in a user namespace, else the warden. `scratch_bytes`, `scratch_files`: the kernel by a file system of that
    size, in memory beside `memory`; without a mount namespace the warden. `output_bytes` (stdout and stderr, each) and
    `result_bytes` (all files that come back): the host. `snapshot_bytes`: a session's values, and its files likewise.
    """

    wall_s: float = 60.0
    cpu_s: float = 60.0
    memory: int = 1024 * MIB
    address_space: int = 4096 * MIB
    processes: int = 64
    open_files: int = 256
    file_bytes: int = 64 * MIB
    scratch_bytes: int = 256 * MIB
    scratch_files: int = 8192
    output_bytes: int = MIB
    result_bytes: int = 128 * MIB
    result_files: int = 256
    snapshot_bytes: int = 64 * MIB


class SandboxConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`read`: files and folders that code may read, at their own paths. `preload`: modules that are imported once and
    are there at once in every call. `accept`: parts of the kernel's locks that may be lacking (parts.py). `spares`: how
    many sandboxes wait for a call; to make one is mostly waiting for the kernel, so several are done sooner.
    """

    limits: Limits = Limits()
    read: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    accept: tuple[Part, ...] = ()
    max_sessions: int = 16
    spares: Annotated[int, msgspec.Meta(ge=0, le=32)] = 3
