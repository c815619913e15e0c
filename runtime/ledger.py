"""The users and join tokens that were made for others than this machine's own processes, and what became of them.

One file in the state folder, replaced as a whole under a lock, because the daemon and `callboard creds` both write it.
It holds public keys only. The server is told of revocations from it at every start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from .errors import ConfigError
from .files import private_folder, write_private
from .folders import Paths
from .messages import UNDECODABLE


class Grant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One user, or one join token (`role` "join", which gives a user of the role `gives`). Times are seconds since
    the epoch; 0 is never."""

    name: str
    role: str
    key: str
    made: float
    by: str
    expires: float = 0.0
    revoked: float = 0.0
    file: str = ""
    gives: str = ""
    used: float = 0.0
    used_key: str = ""
    used_name: str = ""

    def is_active(self, now: float) -> bool:
        return not self.revoked and not (self.expires and self.expires <= now)

    def state(self, now: float) -> str:
        if self.revoked:
            return "revoked"
        if self.used:
            return "used"
        return "active" if self.is_active(now) else "expired"


class Ledger:
    """Grants in the order in which they were made."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of(cls, paths: Paths) -> Ledger:
        return cls(paths.state / "creds.json")

    def grants(self) -> list[Grant]:
        """As they are now. Raises ConfigError where the file is damaged: what was revoked must not come back."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            return msgspec.json.decode(data, type=list[Grant])
        except UNDECODABLE as error:
            raise ConfigError(
                f"{self._path} is damaged: {error}",
                hint="restore it from a backup: without it, users that were revoked would be let in again",
            ) from error

    @contextmanager
    def change(self) -> Iterator[list[Grant]]:
        """The grants, to be changed in place; written on exit, unless the body raises. Others wait meanwhile."""
        private_folder(self._path.parent)
        lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            grants = self.grants()
            before = list(grants)
            yield grants
            if grants != before:
                write_private(self._path, msgspec.json.format(msgspec.json.encode(grants), indent=1) + b"\n")
        finally:
            os.close(lock)

    def find(self, name: str) -> Grant | None:
        """The latest of that name."""
        return next((grant for grant in reversed(self.grants()) if grant.name == name), None)

    def revocations(self) -> Mapping[str, int]:
        """Public key to the time until which what was issued for it is void; expired ones need no mention."""
        now = time.time()
        return {
            grant.key: int(grant.revoked)
            for grant in self.grants()
            if grant.revoked and not (grant.expires and grant.expires <= now)
        }

    def revoke(self, name: str) -> list[Grant]:
        """Mark what goes by that name, and the users that were minted at its request. Raises ConfigError where there
        is nothing to revoke."""
        now = time.time()
        revoked: list[Grant] = []
        with self.change() as grants:
            for index, grant in enumerate(grants):
                if (grant.name == name or grant.name.startswith(f"{name}:")) and grant.is_active(now):
                    grants[index] = msgspec.structs.replace(grant, revoked=now)
                    revoked.append(grants[index])
        if not revoked:
            known = self.find(name)
            raise ConfigError(
                f"there is nobody called {name}" if known is None else f"{name} is {known.state(now)} already",
                hint="`callboard creds list` shows who there is",
            )
        return revoked


def remove_files(grants: list[Grant]) -> None:
    """The creds files of users that may do nothing any more."""
    for grant in grants:
        if grant.file:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(grant.file)
