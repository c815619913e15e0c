"""Another machine, as far as the network can tell: a namespace, and a cable to it that a test may cut."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class Cable:
    """A network namespace, and the pair of interfaces that joins it to this machine."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.namespace = f"cb-{tag}"
        self._ours, self._theirs = f"cb{tag}a", f"cb{tag}b"
        # A range for measurements between networks (RFC 2544), so nobody's own.
        net = f"198.18.{secrets.randbelow(256)}"
        self.host = f"{net}.1"
        self._their_host = f"{net}.2"

    def lay(self) -> None:
        _ip("netns", "add", self.namespace)
        _ip("link", "add", self._ours, "type", "veth", "peer", "name", self._theirs, "netns", self.namespace)
        _ip("addr", "add", f"{self.host}/30", "dev", self._ours)
        _ip("link", "set", self._ours, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self._their_host}/30", "dev", self._theirs)
        _ip("-n", self.namespace, "link", "set", self._theirs, "up")

    def cut(self) -> None:
        _ip("link", "set", self._ours, "down")

    def mend(self) -> None:
        _ip("link", "set", self._ours, "up")

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "delete", self.namespace], stderr=subprocess.DEVNULL, check=False)
        subprocess.run(["ip", "link", "delete", self._ours], stderr=subprocess.DEVNULL, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PermissionError(f"`ip {' '.join(arguments)}`: {done.stderr.strip()}")


@contextmanager
def cable_laid() -> Iterator[Cable]:
    """Skips the test where this person may not make one."""
    if shutil.which("ip") is None:
        pytest.skip("there is no `ip` (Debian: apt-get install iproute2)")
    cable = Cable()
    try:
        cable.lay()
    except PermissionError as error:
        cable.remove()
        pytest.skip(f"no network of its own may be made here: {error}")
    yield cable
    cable.remove()
