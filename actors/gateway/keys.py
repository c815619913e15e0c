"""Who may ask a gateway: a file of keys, each with a name, scopes and limits.

Of a key only its SHA-256 is kept. A slow hash (scrypt, say) is for passwords, which can be guessed: a key is 256 random
bits, so that guessing is out of reach however fast the hash is, and a slow one would cost each request tens of
milliseconds. Looking a key up by its hash also compares nothing that an attacker could time: who can choose a key
cannot choose the beginning of its hash.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec

from ...runtime.errors import ConfigError, UsageError
from ...runtime.files import private_folder, write_private
from ...runtime.log import log
from .rates import Allowance

_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
# Keys begin with it, so that scanners of leaked secrets, and people, know one when they see it.
PREFIX = "cb-"
_SECRET_BYTES = 32

Count = Annotated[int, msgspec.Meta(ge=0)]


class Scope(enum.StrEnum):
    """What a key may be used for. `ADMIN`: sessions, approvals, and whatever no other scope covers."""

    CHAT = "chat"
    EMBEDDINGS = "embeddings"
    TRAINING = "training"
    METRICS = "metrics"
    ADMIN = "admin"


USUAL_SCOPES = (Scope.CHAT, Scope.EMBEDDINGS)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the file. `hash`: SHA-256 of the key, in hexadecimal digits. Limits of 0 are none. Times are in
    seconds since 1970, 0 for never."""

    name: str
    hash: str
    scopes: tuple[Scope, ...] = USUAL_SCOPES
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    made: float = 0.0
    expires: float = 0.0
    revoked: float = 0.0

    def is_good(self, now: float) -> bool:
        return not self.revoked and not 0 < self.expires <= now


class KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: tuple[Key, ...] = ()


class NoSuchKey(UsageError):
    code = "gateway.no_such_key"
    default_hint = "`callboard gateway key list` shows the keys"


def hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def read_keys(path: Path) -> tuple[Key, ...]:
    """Raises ConfigError where the file is damaged, FileNotFoundError where it is not there."""
    try:
        keys = msgspec.json.decode(path.read_bytes(), type=KeyFile).keys
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no file of keys: {error}") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    for key in keys:
        if not re.fullmatch("[0-9a-f]{64}", key.hash):
            raise ConfigError(f"{path}: the hash of {key.name} is no SHA-256 in hexadecimal digits")
    return keys


@contextmanager
def change(path: Path) -> Iterator[list[Key]]:
    """The file's keys, to be changed in place; written back as a whole at the end, by one at a time."""
    private_folder(path.parent)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        keys: list[Key] = []
        with contextlib.suppress(FileNotFoundError):
            keys += read_keys(path)
        yield keys
        write_private(path, msgspec.json.format(msgspec.json.encode(KeyFile(tuple(keys))), indent=2) + b"\n")
    finally:
        os.close(descriptor)


def new_key(
    path: Path,
    name: str,
    scopes: Sequence[Scope] = USUAL_SCOPES,
    *,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
    expires: float = 0.0,
) -> str:
    """Adds a key to the file and returns it: it is nowhere else, and cannot be shown again.

    One of that name that is good is revoked: that is how to rotate. Raises ConfigError.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for a key", hint="up to 64 letters, digits, and any of - _ . @")
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    now = time.time()
    with change(path) as keys:
        _revoke(keys, name, now)
        keys.append(
            Key(
                name=name,
                hash=hash_of(secret),
                scopes=tuple(dict.fromkeys(scopes)),
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                made=now,
                expires=expires,
            )
        )
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Raises NoSuchKey where no good key has that name."""
    with change(path) as keys:
        if not _revoke(keys, name, time.time()):
            raise NoSuchKey(f"there is no key '{name}' that is good in {path}")


def _revoke(keys: list[Key], name: str, now: float) -> bool:
    found = False
    for index, key in enumerate(keys):
        if key.name == name and key.is_good(now):
            keys[index], found = msgspec.structs.replace(key, revoked=now), True
    return found


class Keys:
    """The keys of a file as it is now: it is read again when it has changed.

    A file that was damaged meanwhile leaves in force what it said before, and the log says so. One that is gone lets
    nobody in. Start raises ConfigError where there is none, or where it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_hash: dict[str, Key] = {}
        self._allowances: dict[str, Allowance] = {}
        self._seen = self._stamp()
        try:
            self._take(read_keys(path))
        except FileNotFoundError:
            raise ConfigError(
                f"there is no file of keys {path}", hint="`callboard gateway key new NAME --file FILE` makes one"
            ) from None

    def find(self, secret: str) -> Key | None:
        """The key, if it is in the file now, neither expired nor revoked."""
        self._look()
        key = self._by_hash.get(hash_of(secret))
        return key if key is not None and key.is_good(time.time()) else None

    def allowance(self, key: Key) -> Allowance:
        """Kept by the key's name, so that a new key of that name has no fresh one; new where the limits are others."""
        limits = (key.requests_per_minute, key.tokens_per_minute)
        known = self._allowances.get(key.name)
        if known is None or known.limits != limits:
            known = self._allowances[key.name] = Allowance(*limits)
        return known

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _look(self) -> None:
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._take(read_keys(self._path))
            log.info("the keys in %s are read again: %d are good", self._path, len(self._by_hash))
        except FileNotFoundError:
            self._take(())
            log.error("%s is gone: nobody may ask until it is there again", self._path)
        except ConfigError as error:
            log.error("the keys stay as they were: %s", error)

    def _take(self, keys: Sequence[Key]) -> None:
        self._by_hash = {key.hash: key for key in keys if not key.revoked}
        names = {key.name for key in keys}
        self._allowances = {name: kept for name, kept in self._allowances.items() if name in names}
