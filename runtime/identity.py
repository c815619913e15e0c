"""Whose a creds file is: what its token says, read where it is used.

Nothing here is proof of anything to others; the server checks the signature. It saves a process that may not do
something from trying, and a person with an expired or damaged file from guessing.
"""

from __future__ import annotations

import base64
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .errors import ConfigError, CredentialsExpired
from .roles import covers

_JWT = re.compile(r"-+BEGIN NATS USER JWT-+\s+(\S+)\s+-+END NATS USER JWT-+")
_SEED = re.compile(r"-+BEGIN USER NKEY SEED-+\s+(\S+)\s+-+END USER NKEY SEED-+")


class _Permission(msgspec.Struct, frozen=True):
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class _User(msgspec.Struct, frozen=True):
    pub: _Permission = _Permission()
    sub: _Permission = _Permission()
    tags: tuple[str, ...] = ()


class _Claims(msgspec.Struct, frozen=True):
    sub: str
    nats: _User
    name: str = ""
    iat: float = 0.0
    exp: float = 0.0


@dataclass(frozen=True, slots=True)
class Identity:
    """`role` and `inbox` are empty for a user that another authority made, who is let try everything."""

    name: str = ""
    role: str = ""
    inbox: str = ""
    key: str = ""
    expires: float = 0.0
    publish: tuple[str, ...] = ()
    deny_publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()

    @property
    def may_ask(self) -> frozenset[str]:
        """Of a tool: the actors that it may ask."""
        asked = (subject.removeprefix("actor.") for subject in self.publish if subject.startswith("actor."))
        return frozenset(asked) - {self.name, f"node.{self.name}"} if self.role == "tool" else frozenset()

    def may_publish(self, subject: str) -> bool:
        return not self.role or (covers(self.publish, subject) and not covers(self.deny_publish, subject))

    def may_subscribe(self, subject: str) -> bool:
        return not self.role or covers(self.subscribe, subject)

    @property
    def may_mint(self) -> bool:
        """Whether the daemon signs users for the processes that this one starts."""
        return bool(self.role) and self.may_publish(f"mint.{self.inbox}")

    def check_time(self) -> None:
        """Raises CredentialsExpired where the time of these credentials is over, by this machine's clock."""
        if self.expires and time.time() >= self.expires:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.expires))
            raise CredentialsExpired(f"the credentials of {self.name} expired at {when}")


def parse_creds(text: str, where: str) -> tuple[Identity, str]:
    """Whose credentials these are, and their seed. Raises ConfigError, naming `where`, for what are none."""
    from .credentials import public_key

    token, seed = _JWT.search(text), _SEED.search(text)
    damaged = ConfigError(f"{where}: not a whole NATS creds file", hint="`callboard creds new NAME` makes a new one")
    if token is None or seed is None:
        raise damaged
    try:
        payload = token[1].split(".")[1]
        claims = msgspec.json.decode(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)), type=_Claims)
        key = public_key(seed[1])
    except (IndexError, ValueError, msgspec.MsgspecError, ConfigError) as error:
        raise damaged from error
    if key != claims.sub:
        raise ConfigError(f"{where}: its key is not the one that its token was signed for", hint=damaged.hint)
    tags = dict(tag.split(":", 1) for tag in claims.nats.tags if ":" in tag)
    return (
        Identity(
            name=claims.name,
            role=tags.get("role", ""),
            inbox=tags.get("inbox", ""),
            key=claims.sub,
            expires=claims.exp,
            publish=claims.nats.pub.allow,
            deny_publish=claims.nats.pub.deny,
            subscribe=claims.nats.sub.allow,
        ),
        seed[1],
    )


def read_creds(file: str | Path) -> Identity:
    """Whose creds file that is. Raises ConfigError where it is not there, damaged, or open to other people of this
    machine, as ssh does for keys; CredentialsExpired where its time is over."""
    path = Path(file)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no creds file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a creds file: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"{path}: others on this machine may read it (mode {mode:04o})", hint=f"chmod 600 {path}")
    identity, _ = parse_creds(text, str(path))
    identity.check_time()
    return identity
