"""How a machine that has nothing but a join token becomes a node, and how a node gets users for its processes.

A join token is a user of its own that may ask the daemon one thing, once, before it expires. Who asks makes the key
and sends its public half, so that no secret ever travels over the bus.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ..schemas.base import ErrorInfo
from ..schemas.joining import Join, Mint, Signed
from .bus import Bus, BusOptions, Events
from .errors import CallboardError, ConfigError, DeadlineExceeded, Disconnected, Forbidden, NotReachable, from_info
from .files import private_folder, write_private
from .identity import parse_creds, read_creds
from .messages import UNDECODABLE
from .roles import Role, inbox_prefix
from .tls import Tls

if TYPE_CHECKING:
    from .links import Links

JOIN_TIMEOUT_S = 15.0

# Says what the string is, and the form of the rest.
_PREFIX = "callboard-join-1."

_encode = msgspec.msgpack.Encoder().encode
_answers: msgspec.msgpack.Decoder[Signed | ErrorInfo] = msgspec.msgpack.Decoder(Signed | ErrorInfo)


def pack_token(creds: str) -> str:
    """One string for the creds of a join token."""
    return _PREFIX + base64.urlsafe_b64encode(creds.encode()).decode().rstrip("=")


def unpack_token(token: str) -> str:
    """The creds in a join token. Raises ConfigError for what is none."""
    token = token.strip()
    try:
        if not token.startswith(_PREFIX):
            raise ValueError("it does not begin like one")
        body = token.removeprefix(_PREFIX)
        creds = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True).decode()
        parse_creds(creds, "the join token")
    except (ValueError, binascii.Error, ConfigError) as error:
        raise ConfigError("this is no whole join token", hint="`callboard creds token` prints one") from error
    return creds


async def redeem(url: str, token: str, name: str, tls: Tls | None = None) -> str:
    """The text of a creds file for a user called `name` on the server at `url`, for a join token.

    Raises CredentialsExpired for a token whose time is over, CredentialsRefused for one that the server does not know
    or that was revoked, TokenUsed for one that another has used, ConfigError for a name that is taken or none and for
    what is no token, NotReachable where no server or no daemon answers, DeadlineExceeded.
    """
    from .credentials import creds_text, new_user_key

    bearer = unpack_token(token)
    identity, _ = parse_creds(bearer, "the join token")
    seed, key = new_user_key()
    with tempfile.TemporaryDirectory(prefix="callboard-join-") as folder:
        file = Path(folder) / "token.creds"
        write_private(file, bearer)
        options = BusOptions(url, str(file), identity.inbox, tls=tls or Tls())
        answer = await exchange(options, f"join.{identity.name}", _encode(Join(name, key, socket.gethostname())))
    return creds_text(_signed(answer), seed)


async def child_creds(links: Links, name: str, role: Role) -> Path:
    """The creds file of a process that this node starts, made at the first start under that name with the daemon's
    help. Raises NotReachable, CredentialsRefused, ConfigError."""
    own = Path(links.options.creds)
    # A node that joined anew has another key, and its processes need users that are that one's.
    file = own.parent / f"{own.stem}-processes" / links.identity.key[-12:] / f"{name}.creds"
    if file.is_file():
        known = read_creds(file)
        if known.role == role.name and known.may_ask == frozenset(role.asks):
            return file
    from .credentials import creds_text, new_user_key

    seed, key = new_user_key()
    request = _encode(Mint(name, key, "tool" if role.name == "tool" else "node", role.asks))
    answer = await links.publisher.exchange(f"mint.{links.identity.inbox}", request, JOIN_TIMEOUT_S)
    private_folder(file.parent.parent)
    write_private(file, creds_text(_signed(answer), seed))
    return file


def _signed(answer: bytes) -> str:
    try:
        answered = _answers.decode(answer)
    except UNDECODABLE as error:
        raise NotReachable("what answered is no daemon of this release", hint="look at the versions of both") from error
    if isinstance(answered, ErrorInfo):
        raise from_info(answered)
    return answered.token


async def exchange(options: BusOptions, subject: str, data: bytes, timeout: float = JOIN_TIMEOUT_S) -> bytes:
    """One request and its answer over a connection of its own, without a node.

    Raises NotReachable where nobody takes it, CredentialsRefused, Forbidden, Disconnected, DeadlineExceeded.
    """
    answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    reply = f"{inbox_prefix(options.node_id)}.{secrets.token_hex(4)}"

    def fail(error: CallboardError) -> None:
        if not answer.done():
            answer.set_exception(error)

    def take(subject: str, reply: str, data: bytes) -> None:
        if not answer.done():
            answer.set_result(data)

    def nobody(reply: str) -> None:
        fail(NotReachable(f"no daemon is on the bus at {options.url}"))

    events = Events(
        lost=lambda: fail(Disconnected(f"the connection to {options.url} broke")),
        back=lambda: None,
        denied=lambda denied: fail(Forbidden(f"this user may not use {denied}")),
        nobody=nobody,
        refused=fail,
    )
    bus = Bus(options, "callboard", events)
    await bus.open()
    try:
        await bus.subscribe(reply, take)
        bus.send(subject, data, reply)
        async with asyncio.timeout(timeout):
            return await answer
    except TimeoutError:
        raise DeadlineExceeded(f"no answer from {options.url} within {timeout:g} s") from None
    finally:
        if answer.done() and not answer.cancelled():
            answer.exception()  # said or superseded: not a surprise for the loop
        await bus.close()
