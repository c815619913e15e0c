"""Every error that a user can meet. Each has a stable code, says what is wrong, and hints at what to do.

CallboardError
├── UsageError                usage               the call or the configuration is wrong
│   ├── ConfigError           config              a file, flag or variable that does not fit
│   └── MissingExtra          missing_extra       an optional dependency is not installed
├── ActorError                actor
│   ├── NoSuchActor           actor.none          nobody of that name is there
│   ├── MailboxFull           actor.mailbox_full  the receiver has no room; nothing was taken
│   ├── ActorStopped          actor.stopped       the receiver ended before it answered
│   ├── HandlerFailed         actor.failed        the handler raised something unexpected; the actor restarts
│   ├── RestartLimit          actor.restart_limit an actor crashed too often in too short a time
│   ├── NameTaken             actor.name_taken    an actor of that name is there already
│   ├── UnknownKind           actor.unknown_kind  no registered actor kind of that name
│   └── NoNodeFits            actor.no_node       no node on the bus has what the actor was to be given
├── MessageError              message
│   ├── NotUnderstood         message.not_understood  the receiver handles no message of that type
│   ├── Malformed             message.malformed       bytes that do not decode as the type they claim
│   └── TooLarge              message.too_large       over the bus's payload limit
├── AlreadyRunning            daemon.running      (daemon_info.py) a daemon runs on this state folder already
├── DeadlineExceeded          deadline            no answer in time
├── Cancelled                 cancelled           the other side gave the request up
├── NoSuchTrace               trace.none          no node knows a trace of that identifier
├── SlowConsumer              stream.slow         a stream reader stood still for too long
├── BusError                  bus
│   ├── NotReachable          bus.not_reachable   no daemon or server answers
│   │   ├── NotConnected      bus.not_connected   (tui/session.py) the app has no connection at this moment
│   │   └── CredentialsRefused bus.refused        the server does not let this user in
│   │       ├── CredentialsExpired bus.expired    their time is over
│   │       └── CredentialsRevoked bus.revoked    they were taken back
│   ├── Disconnected          bus.disconnected    the connection broke while the request was under way
│   ├── VersionMismatch       bus.version         nodes of two releases that cannot work together
│   └── Forbidden             bus.forbidden       this user may not use that subject
│       └── TokenUsed         bus.token_used      a join token lets one machine join
├── BlobError                 blob                a large value that travels as a reference
│   ├── BlobGone              blob.gone           released, past its time, or its owner ended
│   ├── BlobDamaged           blob.damaged        the bytes are not those that were put
│   ├── BlobNoRoom            blob.no_room        the disk or the store is full
│   └── NoBlobStore           blob.no_store       it is on another host, and the server has no JetStream
├── ModelError                model               (actors/models, actors/serve)
│   ├── NoSuchModel           model.none
│   ├── ModelDamaged          model.damaged
│   └── RequestInvalid        model.request       a request that the model can never serve
├── StoreError                store               durable state: snapshots, event logs
│   ├── NoStore               store.none          the bus has no JetStream, or there is no bus
│   ├── StoreUnavailable      store.unavailable   the server did not confirm in time: it may or may not be written
│   ├── StoreFull             store.full          no room left on the disk; nothing was written
│   ├── Fenced                store.fenced        somebody else has taken over; this owner must end
│   ├── Conflict              store.conflict      the log is not where the caller expected it
│   ├── Truncated             store.truncated     what was asked for was removed by a compaction
│   ├── StateMismatch         store.mismatch      what is stored is of another kind than what reads it
│   ├── NoSuchState           store.no_state      nothing is stored under that name
│   ├── StateInUse            store.in_use        it is not to be removed or replaced as things are
│   └── BackupDamaged         store.damaged       an export that is cut short, changed, or none
├── QueueError                queue               a work queue
│   ├── QueueFull             queue.full          it holds as much as it may; nothing was put
│   └── LeaseLost             queue.lease_lost    the item is somebody else's by now, or is no more
└── RemoteError               (as sent)           a code that this side does not know
"""

from __future__ import annotations

from typing import ClassVar

from ..schemas.base import ErrorInfo

_BY_CODE: dict[str, type[CallboardError]] = {}


class CallboardError(Exception):
    """Base of all. `str(error)` is the message; `hint` says what to do next; `detail` is for developers."""

    code: ClassVar[str] = "error"
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.default_hint
        self.detail = detail

    def __init_subclass__(cls) -> None:
        _BY_CODE.setdefault(cls.code, cls)

    @property
    def message(self) -> str:
        return str(self)

    def to_info(self) -> ErrorInfo:
        return ErrorInfo(self.code, str(self), self.hint, self.detail)


class UsageError(CallboardError):
    code = "usage"


class ConfigError(UsageError):
    code = "config"


class MissingExtra(UsageError):
    code = "missing_extra"

    @classmethod
    def of(cls, extra: str, what: str) -> MissingExtra:
        return cls(
            f"{what} needs the extra '{extra}', which is not installed",
            hint=f"pip install 'callboard[{extra}]'",
        )


class ActorError(CallboardError):
    code = "actor"


class NoSuchActor(ActorError):
    code = "actor.none"
    default_hint = "`callboard actors` lists who is there"


class MailboxFull(ActorError):
    code = "actor.mailbox_full"
    default_hint = "send slower, or give `tell` a timeout to wait for room"


class ActorStopped(ActorError):
    code = "actor.stopped"


class HandlerFailed(ActorError):
    code = "actor.failed"


class RestartLimit(ActorError):
    code = "actor.restart_limit"


class NameTaken(ActorError):
    code = "actor.name_taken"
    default_hint = "choose another name, or stop the one that has it"


class UnknownKind(ActorError):
    code = "actor.unknown_kind"


class NoNodeFits(ActorError):
    code = "actor.no_node"
    default_hint = "`callboard nodes` shows what each node offers; `callboard node --labels ...` adds one"


class MessageError(CallboardError):
    code = "message"


class NotUnderstood(MessageError):
    code = "message.not_understood"


class Malformed(MessageError):
    code = "message.malformed"


class TooLarge(MessageError):
    code = "message.too_large"


class DeadlineExceeded(CallboardError):
    code = "deadline"


class Cancelled(CallboardError):
    code = "cancelled"


class SlowConsumer(CallboardError):
    code = "stream.slow"


class NoSuchTrace(CallboardError):
    code = "trace.none"
    default_hint = "`callboard trace` lists the last ones; a node keeps a bounded number"


class BusError(CallboardError):
    code = "bus"


class NotReachable(BusError):
    code = "bus.not_reachable"
    default_hint = "`callboard up` starts the daemon; `callboard status` says what runs"


class CredentialsRefused(NotReachable):
    code = "bus.refused"
    default_hint = "--creds FILE names a file with others"


class CredentialsExpired(CredentialsRefused):
    code = "bus.expired"
    default_hint = "`callboard creds new NAME` on the daemon's machine makes new ones"


class CredentialsRevoked(CredentialsRefused):
    code = "bus.revoked"
    default_hint = "`callboard creds new NAME` on the daemon's machine makes new ones"


class Disconnected(BusError):
    code = "bus.disconnected"
    default_hint = "it may or may not have been carried out: ask again if that does no harm"


class VersionMismatch(BusError):
    code = "bus.version"
    default_hint = "install the same release of callboard on both"


class Forbidden(BusError):
    code = "bus.forbidden"
    default_hint = "free subjects begin with `topic.`, and actors are at `actor.<address>`"


class TokenUsed(Forbidden):
    code = "bus.token_used"
    default_hint = "`callboard creds token` on the daemon's machine makes another"


class BlobError(CallboardError):
    code = "blob"


class BlobGone(BlobError):
    code = "blob.gone"
    default_hint = "put it with a longer `ttl`, or `hold` it before its owner releases it"


class BlobDamaged(BlobError):
    code = "blob.damaged"
    default_hint = "have its owner put it again; if it happens again, check the disk"


class BlobNoRoom(BlobError):
    code = "blob.no_room"
    default_hint = "free some space, release blobs that are done with, or give them a shorter `ttl`"


class NoBlobStore(BlobError):
    code = "blob.no_store"
    default_hint = "start the NATS server with JetStream (`--jetstream`): values cross hosts through its object store"


class ModelError(CallboardError):
    code = "model"


class NoSuchModel(ModelError):
    code = "model.none"
    default_hint = "`callboard pull NAME` fetches one; `callboard models` lists those that are here"


class ModelDamaged(ModelError):
    code = "model.damaged"


class RequestInvalid(ModelError):
    code = "model.request"


class StoreError(CallboardError):
    code = "store"


class NoStore(StoreError):
    code = "store.none"
    default_hint = "`callboard up` starts a server with JetStream; one of your own needs `nats-server -js`"


class StoreUnavailable(StoreError):
    code = "store.unavailable"
    default_hint = "it may or may not have been written: read before you write it again"


class StoreFull(StoreError):
    code = "store.full"
    default_hint = "make room on the disk of the state folder, or raise `max_disk` of [server]; then try again"


class Fenced(StoreError):
    code = "store.fenced"
    default_hint = "ask the one that has taken over"


class Conflict(StoreError):
    code = "store.conflict"
    default_hint = "read what was appended meanwhile, decide anew, and append again"


class Truncated(StoreError):
    code = "store.truncated"
    default_hint = "begin at the log's first event, which is a snapshot of all before it"


class StateMismatch(StoreError):
    code = "store.mismatch"
    default_hint = "give this actor or log another name"


class NoSuchState(StoreError):
    code = "store.no_state"
    default_hint = "`callboard state` lists what is stored"


class StateInUse(StoreError):
    code = "store.in_use"


class BackupDamaged(StoreError):
    code = "store.damaged"
    default_hint = "nothing was changed: take another export"


class QueueError(CallboardError):
    code = "queue"


class QueueFull(QueueError):
    code = "queue.full"
    default_hint = "put later, requeue or drop dead letters, or raise `max_items` and `max_bytes` of the queue"


class LeaseLost(QueueError):
    code = "queue.lease_lost"
    default_hint = "stop working on it, or take it for longer: `lease_s`, and `queue.extend` in time"


class RemoteError(CallboardError):
    """A failure whose code this side does not know; `info.code` is the code as sent."""

    code = "remote"

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.message, hint=info.hint, detail=info.detail)
        self.info = info

    def to_info(self) -> ErrorInfo:
        return self.info


def from_info(info: ErrorInfo) -> CallboardError:
    """The typed error for what came over the bus."""
    kind = _BY_CODE.get(info.code)
    if kind is None:
        return RemoteError(info)
    return kind(info.message, hint=info.hint, detail=info.detail)


def to_info(error: BaseException, detail: str = "") -> ErrorInfo:
    """What crosses the bus for any exception: its own info, or `actor.failed` with the exception's text."""
    if isinstance(error, CallboardError):
        return error.to_info()
    return ErrorInfo(HandlerFailed.code, f"{type(error).__name__}: {error}", "", detail)
