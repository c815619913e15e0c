"""The daemon's side of joining: it signs users for those who prove by the subject they use who they are.

`join.<token>` may be published on by the bearer of that token alone, `mint.<inbox>` by that node alone, and nobody but
the daemon may listen to either: the server sees to it (roles.py).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..schemas.joining import Join, Mint, Signed
from .credentials import sign_user
from .errors import CallboardError, ConfigError, CredentialsRefused, Malformed, TokenUsed, to_info
from .ledger import Grant, Ledger
from .log import log
from .messages import UNDECODABLE
from .roles import Role, process_role, role_named

if TYPE_CHECKING:
    from collections.abc import Callable

    from .audit import Audit
    from .folders import Paths
    from .links import Links

_encode = msgspec.msgpack.Encoder().encode
_joins = msgspec.msgpack.Decoder(Join)
_mints = msgspec.msgpack.Decoder(Mint)

# Names that a machine may not join under: the daemon's, and the runtime's own subjects.
_RESERVED = {"main", "node", "inbox"}


class Gatekeeper:
    """Listens while the daemon's node is on the bus. Each request is settled on the disk before it is answered."""

    def __init__(self, links: Links, paths: Paths, audit: Audit) -> None:
        self._links = links
        self._audit = audit
        self._ledger = Ledger.of(paths)
        self._account = Path(links.options.account)

    async def open(self) -> None:
        bus = self._links.bus
        await bus.subscribe("join.*", lambda subject, reply, data: self._answer(self._join, subject, reply, data))
        await bus.subscribe("mint.*", lambda subject, reply, data: self._answer(self._mint, subject, reply, data))
        await bus.flush()

    def _answer(self, settle: Callable[[str, bytes], Signed], subject: str, reply: str, data: bytes) -> None:
        bearer = subject.partition(".")[2]
        try:
            answer = _encode(settle(bearer, data))
        except UNDECODABLE as error:
            answer = _encode(to_info(Malformed(f"this is no request for a user: {error}")))
        except CallboardError as error:
            log.warning("%s: %s", subject, error)
            answer = _encode(error.to_info())
        except OSError as error:  # a full disk: nothing was given away
            log.error("%s: %s", subject, error)
            answer = _encode(to_info(error))
        if reply:
            self._links.bus.send(reply, answer)

    def _join(self, bearer: str, data: bytes) -> Signed:
        message = _joins.decode(data)
        now = time.time()
        by, what = f"token:{bearer}", f"{message.name} on {message.host}"
        try:
            with self._ledger.change() as grants:
                index = next((i for i, grant in enumerate(grants) if grant.name == bearer and grant.gives), -1)
                if index < 0 or not grants[index].is_active(now):
                    raise CredentialsRefused("this join token is not good any more", hint=TokenUsed.default_hint)
                token = grants[index]
                if token.used and (token.used_key, token.used_name) != (message.key, message.name):
                    raise TokenUsed(f"this join token was used by {token.used_name}")
                if not token.used:
                    self._check_name(message.name, grants, now)
                signed = self._sign(message.name, message.key, role_named(token.gives), f"{token.gives}:{message.name}")
                if not token.used:  # asked again with the same key, its answer was lost
                    grants[index] = msgspec.structs.replace(
                        token, used=now, used_key=message.key, used_name=message.name
                    )
                    grants.append(Grant(name=message.name, role=token.gives, key=message.key, made=now, by=by))
        except CallboardError as error:
            self._audit.record("creds.join", what, by=by, proven=True, outcome=error.code)
            raise
        self._audit.record("creds.join", what, by=by, proven=True, detail=f"role {token.gives}, key {message.key}")
        return Signed(signed)

    def _check_name(self, name: str, grants: list[Grant], now: float) -> None:
        if name in _RESERVED:
            raise ConfigError(f"no machine can join as '{name}'", hint="choose another name")
        if any(grant.name == name and grant.is_active(now) for grant in grants):
            raise ConfigError(
                f"somebody called {name} has joined already",
                hint=f"choose another name, or `callboard creds revoke {name}` first",
            )

    def _mint(self, bearer: str, data: bytes) -> Signed:
        message = _mints.decode(data)
        now = time.time()
        parent = bearer.partition(":")[2]
        by, name = f"node:{parent or bearer}", f"{parent}:{message.name}"
        with self._ledger.change() as grants:
            if not any(grant.name == parent and grant.role == "node" and grant.is_active(now) for grant in grants):
                raise CredentialsRefused(f"{parent or bearer} is no node that has joined")
            role = process_role(message.role, message.asks)
            signed = self._sign(message.name, message.key, role, f"{role.name}:{name}")
            grants.append(Grant(name=name, role=role.name, key=message.key, made=now, by=by))
        self._audit.record("creds.mint", name, by=by, proven=True, detail=f"role {role.name}, key {message.key}")
        return Signed(signed)

    def _sign(self, name: str, key: str, role: Role, inbox: str) -> str:
        seed = self._account.read_text("ascii").strip()
        return sign_user(seed, name, name, key, role, inbox=inbox)
