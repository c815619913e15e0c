"""The bus adapter: the one module that speaks to nats-py.

nats-py is asyncio-only and starts its own tasks. Here its callbacks become plain function calls, and sending becomes a
plain call too: what is sent goes to an outbox that one task empties, in order. While the server is away the outbox
waits; nats-py's own `publish` would return as if it had sent.
"""

from __future__ import annotations

import asyncio
import collections
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from .bundles import Bundles
from .errors import CallboardError, CredentialsRefused, CredentialsRevoked, Disconnected, NotReachable
from .identity import read_creds
from .log import log
from .meters import TrafficMeter
from .tls import NO_TLS_FILES, Tls

CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 3.0
# By then a connection that does not answer was given up; see `Bus._pong`.
PONG_TIMEOUT_S = 60
RECONNECT_WAIT_S = 0.1
# A server that answers no ping for two to three of these is taken for gone.
PING_EVERY_S = 10
# A server that came back may still be reading who its users are; one that refuses us for longer means it.
REFUSED_PATIENCE_S = 3.0
# Bounds what a process may have waiting to be sent; more makes `room` wait.
OUTBOX_HIGH = 4096
# Received messages that wait for their callback. Credits keep the real number far below; beyond it nats-py drops.
PENDING_MESSAGES = 512 * 1024
PENDING_BYTES = 512 * 1024 * 1024

_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]+)\"", re.IGNORECASE)

Receive = Callable[[str, str, bytes], None]


@dataclass(frozen=True)
class BusOptions:
    """Where the server is and as whom to connect.

    `creds` is a creds file; `node_id` names the inbox that it may read. `account` is the file with the account's
    seed, where this process may mint users for the processes it starts. `tls` says whom to trust where the server
    speaks TLS; a URL that begins with `tls://` insists on it.
    """

    url: str
    creds: str = ""
    node_id: str = ""
    account: str = ""
    tls: Tls = NO_TLS_FILES


@dataclass
class Events:
    """What the bus tells its owner. `lost` and `back` come from disconnects, `denied` from a refused subject, which
    nats-py gives in lower case, `nobody` from a published message whose subject nobody listens to (its reply subject is
    given). `refused` is the last: the server does not let this user in any more, and the bus does not come back."""

    lost: Callable[[], None]
    back: Callable[[], None]
    denied: Callable[[str], None]
    nobody: Callable[[str], None]
    refused: Callable[[CallboardError], None]


class _Client(Client):
    """nats-py's client, where it would send a user's token in the clear or keep the server's last word to itself."""

    def __init__(self, insists_on_tls: bool, refused: Callable[[str], None], bundled: bool) -> None:
        super().__init__()
        self.bundles = Bundles(self, self._ps) if bundled else None
        if self.bundles is not None:
            self._ps = self.bundles  # pyright: ignore[reportAttributeAccessIssue] it is asked to parse and to reset
        self._insists_on_tls = insists_on_tls
        self._refused = refused

    def _connect_command(self) -> bytes:
        if self._insists_on_tls and not self._server_info.get("tls_required"):
            raise nats.errors.Error("nats: the server offers no TLS, and the URL insists on it")
        return super()._connect_command()

    async def _connect_to_server(self, s: Any) -> None:
        self.hang_up()  # where the last attempt was refused, its socket is still open
        await super()._connect_to_server(s)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.close()

    async def _process_err(self, err_msg: str) -> None:
        if _is_farewell(err_msg):
            self._refused(err_msg)
        await super()._process_err(err_msg)


class Bus:
    """A connection to the NATS server that comes back by itself. One for an onlooker is `bundled`: see `read_every`."""

    def __init__(self, options: BusOptions, name: str, events: Events, *, bundled: bool = False) -> None:
        self._options = options
        self._name = name
        self._events = events
        self._client = _Client(options.url.startswith("tls://"), self._on_farewell, bundled)
        self._refused_since = math.inf
        self._refusal: CredentialsRefused | None = None
        self._outbox: collections.deque[tuple[str, bytes, str]] = collections.deque()
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._connected = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._pongs: set[asyncio.Future[None]] = set()
        self._is_opening = True
        self._give_up_at = math.inf
        self._trouble: Exception | None = None
        # Other conversations on this connection (JetStream's): told of a lost connection, and of a refused subject.
        self.on_lost: list[Callable[[], None]] = []
        self.on_denied: list[Callable[[str], None]] = []
        self.sent = 0
        self.received = 0
        self.reconnects = 0
        self.traffic = TrafficMeter()

    async def open(self) -> None:
        """Raises NotReachable when no server answers, CredentialsRefused when it does not let this user in,
        ConfigError for files that do not fit."""
        extra: dict[str, Any] = {"user_credentials": self._options.creds} if self._options.creds else {}
        if self._options.url.startswith("tls://") or any(self._options.tls.files()):
            extra["tls"] = self._options.tls.context()
        self._give_up_at = asyncio.get_running_loop().time() + CONNECT_TIMEOUT_S
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._client.connect(
                    self._options.url,
                    name=self._name,
                    no_echo=True,
                    connect_timeout=2,
                    allow_reconnect=True,
                    max_reconnect_attempts=-1,
                    ping_interval=PING_EVERY_S,
                    max_outstanding_pings=2,
                    reconnect_time_wait=RECONNECT_WAIT_S,  # pyright: ignore[reportArgumentType] seconds, any number
                    pending_size=8 * 1024 * 1024,
                    skip_subject_validation=True,
                    inbox_prefix=f"inbox.{self._options.node_id or self._name}.js".encode(),
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnect,
                    reconnected_cb=self._on_reconnect,
                    **extra,
                )
        except (OSError, TimeoutError, nats.errors.Error) as error:
            await self._close_client()
            self._client.hang_up()
            cause = _refusal_in(error) or self._trouble or error
            where = f"the NATS server at {self._options.url}"
            if _is_refusal(cause):
                raise self._refused(cause) from cause
            raise NotReachable(f"{where} does not answer: {_reason(cause)}") from cause
        except asyncio.CancelledError:
            self._client.hang_up()
            raise
        if task is not None and task.cancelling() > cancelled_before:  # it was forgotten on the way: see `_on_error`
            with anyio.CancelScope(shield=True):
                await self._close_client()
            await anyio.lowlevel.checkpoint_if_cancelled()  # a cancel scope's own
            raise asyncio.CancelledError
        self._is_opening = False
        self._connected.set()
        self._sender = asyncio.get_running_loop().create_task(self._send_all())

    def _refused(self, why: Exception | str) -> CredentialsRefused:
        """What a server means that does not let us in. It says as little as it can; the rest is read from the file."""
        if self._options.creds:
            try:
                read_creds(self._options.creds)
            except CredentialsRefused as expired:
                return expired
            except CallboardError as unfit:
                log.debug("%s", unfit)  # it changed since we read it; the server's word is the reason all the same
        where = f"the NATS server at {self._options.url}"
        if "revoked" in str(why).lower():
            return CredentialsRevoked(f"{where} has put out this user: its credentials are revoked")
        return CredentialsRefused(f"{where} refuses these credentials: not its own, or revoked")

    def _end(self, refusal: CredentialsRefused) -> None:
        if self._refusal is None:
            self._refusal = refusal
            self._connected.clear()
            self._events.refused(refusal)

    def check(self) -> None:
        """Raises CredentialsRefused where the server does not let this user in any more."""
        if self._refusal is not None:
            raise type(self._refusal)(str(self._refusal), hint=self._refusal.hint)

    @property
    def client(self) -> Client:
        """The connection itself, for the adapter's other modules."""
        return self._client

    async def up(self) -> None:
        """Wait until the server is there."""
        await self._connected.wait()

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    @property
    def is_up(self) -> bool:
        return self._connected.is_set()

    def send(self, subject: str, data: bytes, reply: str = "") -> None:
        """Queue a message; it leaves in order, once the server is there. Never waits."""
        self._outbox.append((subject, data, reply))
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)

    async def room(self, timeout: float) -> None:
        """Wait while the outbox is long. Raises NotReachable when it stays so for `timeout` seconds."""
        try:
            async with asyncio.timeout(None if timeout == math.inf else timeout):
                while len(self._outbox) >= OUTBOX_HIGH:
                    await self._sent()
        except TimeoutError:
            raise NotReachable(f"the NATS server at {self._options.url} takes nothing") from None

    async def _sent(self) -> None:
        if self._drained is None or self._drained.done():
            self._drained = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._drained)

    def unsent(self) -> set[str]:
        """The reply subjects of what waits in the outbox."""
        return {reply for _, _, reply in self._outbox if reply}

    def discard(self, reply: str) -> bool:
        """Take back what waits in the outbox under that reply subject. Returns whether there was any."""
        kept = [entry for entry in self._outbox if entry[2] != reply]
        found = len(kept) < len(self._outbox)
        if found:
            self._outbox.clear()
            self._outbox.extend(kept)
        return found

    @property
    def num_waiting(self) -> int:
        return len(self._outbox)

    @property
    def is_full(self) -> bool:
        return len(self._outbox) >= OUTBOX_HIGH

    async def _send_all(self) -> None:
        outbox = self._outbox
        publish = self._client.publish
        count_of, counts = self.traffic.count_of, self.traffic.sent
        loop = asyncio.get_running_loop()
        while True:
            while outbox:
                if not self._connected.is_set():
                    await self._connected.wait()
                subject, data, reply = outbox.popleft()
                try:
                    await publish(subject, data, reply)
                except (nats.errors.Error, OSError) as error:
                    if self._client.is_closed:
                        return
                    log.warning("could not send to %s: %s", subject, error)
                self.sent += 1
                count = count_of(counts, subject)
                count[0] += 1
                count[1] += len(data)
            if self._drained is not None and not self._drained.done():
                self._drained.set_result(None)
            self._wake = loop.create_future()
            await self._wake

    async def flush(self, timeout: float = 2.0) -> None:
        """Return once the server has everything that was sent before. Raises Disconnected."""
        try:
            async with asyncio.timeout(timeout):
                while self._outbox:
                    await self._sent()
                # nats-py writes a ping ahead of what it has not written yet, so the first answer says too little.
                for _ in range(2):
                    await self._pong()
        except (TimeoutError, nats.errors.Error) as error:
            raise Disconnected(f"the NATS server at {self._options.url} does not answer") from error

    async def _pong(self) -> None:
        """Ask the server for a sign of life. Whoever waits may be cancelled: the waiting itself is not, since nats-py
        reads nothing more once an answer comes for which nobody waits."""
        waiting = asyncio.ensure_future(self._client.flush(timeout=PONG_TIMEOUT_S))
        self._pongs.add(waiting)
        waiting.add_done_callback(self._pong_over)
        await asyncio.shield(waiting)

    def _pong_over(self, waiting: asyncio.Future[None]) -> None:
        self._pongs.discard(waiting)
        if not waiting.cancelled():
            waiting.exception()  # whoever waits has it, or is gone

    async def subscribe(self, subject: str, receive: Receive) -> Subscription:
        """Call `receive(subject, reply, data)` for each message, in order. It must not wait."""
        nobody = self._events.nobody
        count = self.traffic.count_of(self.traffic.received, subject)

        async def on_message(message: Msg) -> None:
            self.received += 1
            count[0] += 1
            count[1] += len(message.data)
            if message.headers is not None and message.headers.get("Status") == "503":
                nobody(message.subject)
            else:
                receive(message.subject, message.reply, message.data)

        subscription = await self._client.subscribe(
            subject, cb=on_message, pending_msgs_limit=PENDING_MESSAGES, pending_bytes_limit=PENDING_BYTES
        )
        if self._client.bundles is not None:
            self._client.bundles.receivers[b"%d" % subscription._id] = receive
        return subscription

    def read_every(self, seconds: float) -> None:
        """Leave what comes where it is for so long between two looks, and then take it all at once."""
        assert self._client.bundles is not None
        self._client.bundles.every_s = seconds

    async def unsubscribe(self, subscription: Subscription) -> None:
        """Take what is on its way and no more: who sent it learns by an answer that it came too late."""
        try:
            if not self.is_up:
                await subscription.unsubscribe()
                return
            # `drain` alone believes a ping that nats-py wrote ahead of the order to unsubscribe (see `flush`).
            await self._client._send_unsubscribe(subscription._id)
            await self.flush()
            await subscription.drain()
        except (nats.errors.Error, Disconnected) as error:
            # The server has the order, or the connection goes and the subscription with it. Without this, nats-py would
            # subscribe it again on the next connection, and we would answer for a name that is somebody else's by then.
            log.debug("%s: %s", subscription.subject, error)
            subscription._stop_processing()
            self._client._remove_sub(subscription._id)

    async def close(self) -> None:
        """Send what waits, bounded, and go."""
        if self._connected.is_set():
            try:
                await self.flush(1.0)
            except Disconnected:
                log.debug("the server was gone before the last messages went out")
        if self._sender is not None:
            self._sender.cancel()
        await self._close_client()
        for waiting in tuple(self._pongs):
            waiting.cancel()
        if self._refusal is not None:
            self._client.hang_up()

    async def _close_client(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.close()
        except TimeoutError:  # of TLS that broke in its handshake, asyncio may never say that it is closed
            self._client.hang_up()
        except OSError as error:  # nats-py flushes a socket that a server which refused us has closed
            log.debug("bus: %s", error)

    async def _on_error(self, error: Exception) -> None:
        if self._is_opening:
            self._trouble = _refusal_in(error) or self._trouble or error
            # nats-py would go on trying: this takes it out of its loop. The timeout alone does not always do so, since
            # asyncio.wait_for of Python 3.11 forgets a cancellation that comes together with what it waits for.
            if _is_refusal(error) or asyncio.get_running_loop().time() >= self._give_up_at:
                raise error
        elif _is_refusal(error):
            now = asyncio.get_running_loop().time()
            self._refused_since = min(self._refused_since, now)
            if now - self._refused_since > REFUSED_PATIENCE_S:
                self._end(self._refused(error))
                raise asyncio.CancelledError  # the one thing that ends nats-py's attempts
        denied = _DENIED.search(str(error))
        if denied is not None:
            self._events.denied(denied.group(2))
            for tell in self.on_denied:
                tell(denied.group(2))
        elif isinstance(error, nats.errors.SlowConsumerError):
            log.error("messages on %s were lost: they came faster than this process takes them", error.subject)
        elif isinstance(error, (nats.errors.Error, OSError, asyncio.TimeoutError)):
            log.debug("bus: %s", error or type(error).__name__)
        else:
            log.error("bus: %r", error, exc_info=error)  # a callback of ours failed

    async def _on_disconnect(self) -> None:
        if self._connected.is_set():
            self._connected.clear()
            self._events.lost()
            for tell in self.on_lost:
                tell()

    def _on_farewell(self, words: str) -> None:
        if not self._is_opening:
            self._end(self._refused(words))

    async def _on_reconnect(self) -> None:
        self.reconnects += 1
        self._refused_since = math.inf
        self._connected.set()
        self._events.back()


def _refusal_in(error: BaseException) -> Exception | None:
    """The server's refusal in what an error came from: its connection may be reset right after it said so."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, Exception) and _is_refusal(seen):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _is_refusal(error: Exception) -> bool:
    return isinstance(error, nats.errors.AuthorizationError) or "authorization" in str(error).lower()


def _is_farewell(words: str) -> bool:
    """Whether the server puts out a user who was let in: "User Authentication Expired", say."""
    words = words.lower()
    return "authentication" in words and ("expired" in words or "revoked" in words)


def _reason(error: Exception) -> str:
    """What a person can use of it: the system's own words for a socket's error."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
