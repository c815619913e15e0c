"""The processes that this one has started for actors."""

from __future__ import annotations

import contextlib

import psutil


def own_workers(naming: str = "") -> list[psutil.Process]:
    """Those that live and whose command has `naming` in it. One that has ended and is not waited for yet is none."""
    found: list[psutil.Process] = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a ZombieProcess is one
            command = process.cmdline()
            if "callboard.runtime.worker" in command and naming in " ".join(command):
                found.append(process)
    return found
