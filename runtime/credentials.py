"""Who may do what on the embedded server: an account of our own, and a user minted for every process.

The server runs in operator mode with its accounts preloaded, and users are JWTs signed by the account's key. So a new
process needs no word with the server and no reload of it: whoever holds the account's seed signs a user and hands it
over. Formats: NKEYS (https://docs.nats.io/nkeys) and the NATS JWT version 2 claims
(https://github.com/nats-io/jwt). The operator is made anew at every start of the server.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from .errors import ConfigError
from .files import write_private
from .roles import INBOX, NAME, NODE, ROOT, Role

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def create_account(path: Path) -> str:
    """The seed of the account kept at `path`, made at first use. JetStream files data under the account's key, so
    losing this file loses the way to the data."""
    try:
        seed = path.read_text("ascii").strip()
    except FileNotFoundError:
        seed = _seed(nkeys.PREFIX_BYTE_ACCOUNT)
        try:
            write_private(path, seed + "\n", exclusive=True)
        except FileExistsError:  # somebody else was first, and theirs counts
            return create_account(path)
        return seed
    _keypair(seed, "SA", path)  # damaged: say so here, not in the server's log
    return seed


def new_user_key() -> tuple[str, str]:
    """Seed and public key of a new user. The seed need never leave the process that will use it."""
    seed = _seed(nkeys.PREFIX_BYTE_USER)
    return seed, public_key(seed)


def public_key(seed: str) -> str:
    """The public key of a user's seed. Raises ConfigError where it is none."""
    return _public(_keypair(seed, "SU"))


def sign_user(
    account_seed: str, name: str, node_id: str, key: str, role: Role = NODE, *, inbox: str = "", expires: float = 0.0
) -> str:
    """The token (JWT) that makes the user with that public key a member of the account, in that role.

    `name` is for people; `node_id` is one subject token: its name on the bus, and its root's where the role has but
    one. `inbox` is the token under which it has its inbox, shared with no other user: `node_id`, or what no name can
    be. From `expires` on (seconds since the epoch) the server disconnects it. Raises ConfigError.
    """
    if not _TOKEN.fullmatch(node_id):
        raise ConfigError(f"'{node_id}' is no name: it must be a single subject token", hint="letters, digits, - and _")
    if not is_public_user_key(key):
        raise ConfigError(f"'{key}' is no public key of a NATS user")
    own = {INBOX: inbox or node_id, NAME: node_id, ROOT: node_id}
    return _sign(
        _keypair(account_seed, "SA"),
        subject=key,
        name=name,
        expires=expires,
        claims={
            "pub": _permission(role.publish, own, role.deny_publish),
            "sub": _permission(role.subscribe, own),
            "subs": -1,
            "data": -1,
            "payload": -1,
            "tags": [f"role:{role.name}", f"inbox:{inbox or node_id}"],
            "type": "user",
            "version": 2,
        },
    )


def creds_text(token: str, seed: str) -> str:
    """What a creds file holds."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def mint_user(
    account_seed: str, name: str, node_id: str, role: Role = NODE, *, inbox: str = "", expires: float = 0.0
) -> str:
    """`sign_user` for a new key: the text of a creds file."""
    seed, key = new_user_key()
    return creds_text(sign_user(account_seed, name, node_id, key, role, inbox=inbox, expires=expires), seed)


def mint_user_file(path: Path, account_seed: str, name: str, node_id: str, role: Role = NODE) -> Path:
    """`mint_user`, written to a file that only this person can read. Returns `path`."""
    write_private(path, mint_user(account_seed, name, node_id, role))
    return path


def is_public_user_key(key: str) -> bool:
    """Whether it is the public key of a user: its form and its checksum."""
    try:
        raw = base64.b32decode(key + "=" * (-len(key) % 8))
    except ValueError:
        return False
    return (
        len(raw) == 35 and raw[0] == nkeys.PREFIX_BYTE_USER and int.from_bytes(raw[33:], "little") == _crc16(raw[:33])
    )


@dataclass(frozen=True, slots=True)
class ServerTrust:
    """What the server's configuration holds so that it believes the account's users, none of it secret; and two
    secrets, with which it is told of a revocation while it runs."""

    operator_jwt: str
    accounts: dict[str, str]  # public key -> account JWT
    system_account: str
    operator_seed: str
    system_creds: str


def make_trust(account_seed: str, revocations: Mapping[str, int] | None = None) -> ServerTrust:
    """An operator that vouches for the account and for a system account, which only `system_creds` can enter.

    `revocations` are public keys of users, with the time until which what was signed for them is void.
    """
    operator_seed = _seed(nkeys.PREFIX_BYTE_OPERATOR)
    operator = nkeys.from_seed(operator_seed.encode("ascii"))
    system = nkeys.from_seed(_seed(nkeys.PREFIX_BYTE_ACCOUNT).encode("ascii"))
    system_key = _public(system)
    user_seed, user_key = new_user_key()
    system_user = _sign(
        system,
        subject=user_key,
        name="callboard",
        claims={
            "pub": {"allow": [claims_update_subject("*")]},
            "sub": {"allow": ["inbox.system.>"]},
            "subs": -1,
            "data": -1,
            "payload": -1,
            "type": "user",
            "version": 2,
        },
    )
    key, claims = sign_account(operator_seed, account_seed, revocations or {})
    return ServerTrust(
        operator_jwt=_sign(
            operator,
            subject=_public(operator),
            name="callboard",
            claims={"system_account": system_key, "type": "operator", "version": 2},
        ),
        accounts={
            key: claims,
            system_key: _sign(operator, system_key, "system", _account_claims(jetstream=False)),
        },
        system_account=system_key,
        operator_seed=operator_seed,
        system_creds=creds_text(system_user, user_seed),
    )


def sign_account(operator_seed: str, account_seed: str, revocations: Mapping[str, int]) -> tuple[str, str]:
    """The account's public key, and what the operator says of the account: a server that has another such word takes
    this one in its place (`claims_update_subject`)."""
    operator, account = _keypair(operator_seed, "SO"), _public(_keypair(account_seed, "SA"))
    claims = _account_claims(jetstream=True)
    if revocations:
        claims["revocations"] = dict(revocations)
    return account, _sign(operator, account, "callboard", claims)


def claims_update_subject(account: str) -> str:
    """Where the system account tells the server a new word of an account."""
    return f"$SYS.REQ.ACCOUNT.{account}.CLAIMS.UPDATE"


def _permission(subjects: tuple[str, ...], own: Mapping[str, str], deny: tuple[str, ...] = ()) -> dict[str, list[str]]:
    if not subjects:  # NATS takes an empty list as leave for everything
        return {"deny": [">"]}
    allowed: list[str] = []
    for subject in subjects:
        for placeholder, value in own.items():
            subject = subject.replace(placeholder, value)
        allowed.append(subject)
    return {"allow": allowed, "deny": list(deny)} if deny else {"allow": allowed}


def _account_claims(*, jetstream: bool) -> dict[str, Any]:
    limits: dict[str, Any] = {
        "subs": -1,
        "data": -1,
        "payload": -1,
        "imports": -1,
        "exports": -1,
        "wildcards": True,
        "conn": -1,
        "leaf": -1,
    }
    if jetstream:
        limits |= {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}
    return {"limits": limits, "type": "account", "version": 2}


def _seed(prefix: int) -> str:
    return nkeys.encode_seed(os.urandom(32), prefix).decode("ascii")


def _keypair(seed: str, kind: str, path: Path | None = None) -> nkeys.KeyPair:
    try:
        encoded = seed.encode("ascii")
        prefix, raw = nkeys.decode_seed(encoded)
        # nkeys does not look at the checksum; encoding once more does.
        if not seed.startswith(kind) or nkeys.encode_seed(raw, prefix) != encoded:
            raise nkeys.ErrInvalidSeed
        return nkeys.from_seed(encoded)
    except (nkeys.NkeysError, ValueError) as error:
        where = f"{path} holds" if path else "this is"
        what = {"SA": "NATS account seed", "SO": "NATS operator seed", "SU": "NATS user seed"}[kind]
        raise ConfigError(f"{where} no {what}", hint="restore the file from a backup") from error


def _public(key: nkeys.KeyPair) -> str:
    return bytes(key.public_key).decode("ascii")


def _sign(issuer: nkeys.KeyPair, subject: str, name: str, claims: dict[str, Any], expires: float = 0.0) -> str:
    body: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": _public(issuer),
        "name": name,
        "nats": claims,
        "sub": subject,
    }
    if expires:
        body["exp"] = int(expires)
    digest = hashlib.sha256(_compact(body)).digest()
    body["jti"] = base64.b32encode(digest).decode("ascii").rstrip("=")
    head = _base64url(_compact({"typ": "JWT", "alg": "ed25519-nkey"}))
    payload = f"{head}.{_base64url(_compact(body))}"
    return f"{payload}.{_base64url(issuer.sign(payload.encode('ascii')))}"


def _crc16(data: bytes) -> int:
    """CRC-16/XMODEM, as NKEYS has it."""
    return binascii.crc_hqx(data, 0)


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
