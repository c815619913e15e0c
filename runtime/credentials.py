"""Who may do what on the embedded server: an account of our own, and a user minted for every process.

The server runs in operator mode with its accounts preloaded, and users are JWTs signed by the account's key. So a new
process needs no word with the server and no reload of it: whoever holds the account's seed signs a user and hands it
over. Formats: NKEYS (https://docs.nats.io/nkeys) and the NATS JWT version 2 claims
(https://github.com/nats-io/jwt). The operator is made anew at every start and its seed is never written down.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nkeys

from .errors import ConfigError
from .files import write_private

# Stands for the id of the process a user is minted for, in a role's subjects.
OWN = "{node_id}"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Role:
    """What a user may publish and subscribe to. Lists of what is allowed only: in NATS a denial beats an allowance,
    so a list of denials cannot be widened for one user, and forgets what is added later."""

    name: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


# A full member of the company: every subject of ours, and everybody's inbox to answer to, but only its own to read.
MEMBER = Role(
    "member",
    publish=(
        "actor.>",
        "node.>",
        "nodes.>",
        "topic.>",
        "tap.>",
        "dead.>",
        "inbox.>",
        "$SRV.>",
        "$JS.API.>",
        "$JS.ACK.>",
        "$JS.SNAPSHOT.>",  # `callboard state export` and `import`
        "callboard.>",  # what JetStream keeps for us: event logs
        "$JS.FC.>",  # flow control: the consumer's answer to the server
        "$KV.>",
        "$O.>",
    ),
    subscribe=(f"inbox.{OWN}.>", "actor.>", "node.>", "nodes.>", "topic.>", "tap.>", "dead.>", "$SRV.>"),
)

# A program that is none of ours: it asks actors, publishes, and listens to what is there for all. Not to `actor.>`,
# where its presence would look like an actor's. No node's name has a colon, so its inbox can be no node's.
PROGRAM = Role(
    "program",
    publish=("actor.>", "topic.>", "inbox.>", "$SRV.>"),
    subscribe=(f"inbox.program:{OWN}.>", "topic.>", "dead.>"),
)

ROLES: dict[str, Role] = {role.name: role for role in (MEMBER, PROGRAM)}


def inbox_prefix(name: str) -> str:
    """The only subjects under which the user minted with the role PROGRAM for `name` may wait for answers."""
    return f"inbox.program:{name}"


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


def mint_user(account_seed: str, name: str, node_id: str, role: Role = MEMBER) -> str:
    """The text of a creds file (JWT and seed) for a new user of the account.

    `name` is for people; `node_id` is one subject token, under which the user has its inbox.
    """
    if not _TOKEN.fullmatch(node_id):
        raise ConfigError(f"node id {node_id!r} is no single subject token", hint="letters, digits, - and _ only")
    account = _keypair(account_seed, "SA")
    seed = _seed(nkeys.PREFIX_BYTE_USER)
    user = nkeys.from_seed(seed.encode("ascii"))
    token = _sign(
        account,
        subject=user,
        name=name,
        claims={
            "pub": _permission(role.publish, node_id),
            "sub": _permission(role.subscribe, node_id),
            "subs": -1,
            "data": -1,
            "payload": -1,
            "type": "user",
            "version": 2,
        },
    )
    return (
        f"-----BEGIN NATS USER JWT-----\n{token}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


def mint_user_file(path: Path, account_seed: str, name: str, node_id: str, role: Role = MEMBER) -> Path:
    """`mint_user`, written to a file that only this person can read. Returns `path`."""
    write_private(path, mint_user(account_seed, name, node_id, role))
    return path


@dataclass(frozen=True, slots=True)
class ServerTrust:
    """What the server's configuration holds so that it believes the account's users; nothing in it is secret."""

    operator_jwt: str
    accounts: dict[str, str]  # public key -> account JWT
    system_account: str


def make_trust(account_seed: str) -> ServerTrust:
    """An operator that vouches for the account and for a system account that nobody can enter."""
    account = _keypair(account_seed, "SA")
    operator = nkeys.from_seed(_seed(nkeys.PREFIX_BYTE_OPERATOR).encode("ascii"))
    system = nkeys.from_seed(_seed(nkeys.PREFIX_BYTE_ACCOUNT).encode("ascii"))
    system_key = _public(system)
    return ServerTrust(
        operator_jwt=_sign(
            operator,
            subject=operator,
            name="callboard",
            claims={"system_account": system_key, "type": "operator", "version": 2},
        ),
        accounts={
            _public(account): _sign(operator, account, "callboard", _account_claims(jetstream=True)),
            system_key: _sign(operator, system, "system", _account_claims(jetstream=False)),
        },
        system_account=system_key,
    )


def _permission(subjects: tuple[str, ...], node_id: str) -> dict[str, list[str]]:
    if not subjects:  # NATS takes an empty list as leave for everything
        return {"deny": [">"]}
    return {"allow": [subject.replace(OWN, node_id) for subject in subjects]}


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
        raise ConfigError(f"{where} no NATS account seed", hint="restore the file from a backup") from error


def _public(key: nkeys.KeyPair) -> str:
    return bytes(key.public_key).decode("ascii")


def _sign(issuer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, claims: dict[str, Any]) -> str:
    body: dict[str, Any] = {
        "iat": int(time.time()),
        "iss": _public(issuer),
        "name": name,
        "nats": claims,
        "sub": _public(subject),
    }
    digest = hashlib.sha256(_compact(body)).digest()
    body["jti"] = base64.b32encode(digest).decode("ascii").rstrip("=")
    head = _base64url(_compact({"typ": "JWT", "alg": "ed25519-nkey"}))
    payload = f"{head}.{_base64url(_compact(body))}"
    return f"{payload}.{_base64url(issuer.sign(payload.encode('ascii')))}"


def _compact(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
