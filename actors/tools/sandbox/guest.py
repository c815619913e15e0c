"""The host's hold of one sandbox: it speaks with its guest, whom it does not trust, and its warden, whom it does."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import socket
from dataclasses import dataclass, field
from typing import Annotated, Any

import anyio
import msgspec

from .channel import Channel
from .config import Limits
from .errors import NeverBegan, SandboxError, SandboxKilled
from .frames import BadFrame
from .results import GuestError, Usage

# The warden ends a call that takes too long. If it has not said so after this, the host ends it itself.
_GRACE_S = 5.0
_START_S = 30.0
_READ = 1 << 16


class _Failure(msgspec.Struct, frozen=True):
    type: str
    message: str
    traceback: str


class Answer(msgspec.Struct, frozen=True):
    """What a guest says of a call: its own view, never a fact."""

    call: int
    value: str | None = None
    error: _Failure | None = None
    exit: Annotated[int, msgspec.Meta(ge=0, le=255)] | None = None
    images: Annotated[int, msgspec.Meta(ge=0)] = 0
    kept: list[str] = []
    lost: dict[str, str] = {}

    def guest_error(self) -> GuestError | None:
        return GuestError(self.error.type, self.error.message, self.error.traceback) if self.error else None


class Event(msgspec.Struct, frozen=True):
    """What a warden says. `event`: keeper, ready, failed, put, settled, exited, killed."""

    event: str
    reason: str = ""
    status: int = 0
    error: str = ""
    detail: str = ""
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_memory: int = 0
    most_processes: int = 0

    def usage(self) -> Usage:
        return Usage(self.wall_s, self.cpu_s, self.peak_memory, self.most_processes)


_ANSWER = msgspec.json.Decoder(Answer)
_EVENT = msgspec.json.Decoder(Event)


@dataclass
class Output:
    """One of the guest's two streams; `limit` bytes a call."""

    descriptor: int
    limit: int
    data: bytearray = field(default_factory=bytearray)

    async def follow(self) -> None:
        """Read until it is over the limit, or nobody can write any more."""
        while not self.over:
            await anyio.wait_readable(self.descriptor)
            if not self._read():
                return

    def drain(self) -> None:
        """What is in it now."""
        while not self.over and self._read():
            pass

    def _read(self) -> bool:
        try:
            piece = os.read(self.descriptor, _READ)
        except BlockingIOError:
            return False
        self.data += piece
        return bool(piece)

    @property
    def over(self) -> bool:
        return len(self.data) > self.limit

    def text(self) -> str:
        return bytes(self.data[: self.limit]).decode(errors="replace")


@dataclass(frozen=True)
class Outcome:
    """How a call ended. `answer` None: the guest ended before it gave one. `ended`: its process is gone."""

    answer: Answer | None
    ended: bool
    status: int
    stdout: str
    stderr: str
    usage: Usage


class Guest:
    """One sandbox: one interpreter. `call` at a time; `close` at any time."""

    def __init__(
        self, guest: Channel, warden: Channel, streams: tuple[int, int], limits: Limits, scratch_folder: str
    ) -> None:
        self._guest = guest
        self._warden = warden
        self._streams = streams
        self._limits = limits
        self._scratch_folder = scratch_folder
        self._keeper: int | None = None
        self._calls = 0
        self.scratch = -1
        self.ready = False
        self.closed = False

    @classmethod
    def create(cls, limits: Limits, scratch_folder: str) -> tuple[Guest, list[int]]:
        """With the four descriptors that the zygote needs: the caller closes them."""
        ours, theirs = socket.socketpair()
        warden_ours, warden_theirs = socket.socketpair()
        out, out_theirs = os.pipe()
        errors, errors_theirs = os.pipe()
        os.set_blocking(out, False)
        os.set_blocking(errors, False)
        made = cls(
            Channel(ours, descriptors=False),
            Channel(warden_ours, descriptors=True),
            (out, errors),
            limits,
            scratch_folder,
        )
        return made, [theirs.detach(), warden_theirs.detach(), out_theirs, errors_theirs]

    async def wait_ready(self) -> None:
        """Until every lock is on and it listens. Raises SandboxError; EOFError when the zygote is gone."""
        if self.ready:
            return
        with anyio.move_on_after(_START_S):
            keeper = scratch = None
            while keeper is None or scratch is None:
                event = await self._event()
                if event.event == "failed":
                    raise SandboxError(f"a sandbox could not be made: {event.error}", detail=event.detail)
                if event.event == "keeper":
                    keeper = self._keeper = self._warden.descriptors.popleft()
                elif event.event == "ready":
                    scratch = self.scratch = self._warden.descriptors.popleft()
            await self._guest.receive()
            self.ready = True
            return
        raise SandboxError(f"a sandbox was not ready after {_START_S:.0f} s")

    async def _event(self) -> Event:
        return _EVENT.decode(await self._warden.receive())

    async def put(self, name: str, source: int) -> None:
        """Copy an open file to `name` below the scratch folder. Between calls only."""
        try:
            await self._warden.send({"do": "put", "name": name}, [source])
            event = await self._event()
        except (EOFError, OSError) as error:
            self.close()
            raise self._gone() from error
        if event.event != "put" or event.error:
            raise SandboxError(f"{name} could not be put into the sandbox: {event.error or event.event}")

    async def call(self, order: dict[str, Any], bounds: dict[str, Any]) -> Outcome:
        """One order to the guest, under those bounds. Raises SandboxKilled; then, and when cancelled, it is closed."""
        outputs = [Output(descriptor, self._limits.output_bytes) for descriptor in self._streams]
        answers: list[Answer] = []
        event = Event("killed", reason="host")
        try:
            await self._warden.send({"do": "start", "bounds": bounds})
            await self._guest.send({"call": self._calls + 1, **order})
            self._calls += 1  # from here on it may have run
            async with anyio.create_task_group() as tasks:
                for output in outputs:
                    tasks.start_soon(self._follow, output)
                tasks.start_soon(self._await_answer, answers)
                event = await self._last_event(bounds["wall_s"] + _GRACE_S)
                tasks.cancel_scope.cancel()
        except OSError as error:
            self.close()
            raise self._gone() from error
        except BaseException:
            self.close()
            raise
        return self._outcome(event, answers, outputs, bounds)

    async def _follow(self, output: Output) -> None:
        await output.follow()
        if output.over:
            await self._tell_warden({"do": "end", "reason": "output"})

    async def _await_answer(self, answers: list[Answer]) -> None:
        try:
            answer = _ANSWER.decode(await self._guest.receive())
            if answer.call != self._calls:
                raise BadFrame(f"an answer to call {answer.call} in call {self._calls}")
        except (EOFError, OSError):
            return  # it has ended: the warden says how
        except (BadFrame, msgspec.MsgspecError):
            await self._tell_warden({"do": "end", "reason": "protocol"})
            return
        answers.append(answer)
        await self._tell_warden({"do": "settle"})

    async def _tell_warden(self, order: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it has ended: its last event is on the way
            await self._warden.send(order)

    async def _last_event(self, patience_s: float) -> Event:
        with anyio.move_on_after(patience_s):
            try:
                return await self._event()
            except (EOFError, OSError):
                return Event("killed", reason="host")
        return Event("killed", reason="host")

    def _outcome(self, event: Event, answers: list[Answer], outputs: list[Output], bounds: dict[str, Any]) -> Outcome:
        for output in outputs:
            output.drain()
        stdout, stderr = (output.text() for output in outputs)
        reason = event.reason if event.event == "killed" else "output" if any(one.over for one in outputs) else ""
        if reason:
            self.close()
            raise SandboxKilled.of(reason, _bound(reason, bounds, self._limits), stdout, stderr)
        answer = answers[0] if answers else None
        return Outcome(answer, event.event == "exited", event.status, stdout, stderr, event.usage())

    def _gone(self) -> SandboxKilled:
        return (NeverBegan if self.is_new else SandboxKilled).of("gone")

    def close(self) -> None:
        """End it and let go of everything; what it wrote is gone."""
        if self.closed:
            return
        self.closed = True
        self._guest.close()
        self._warden.close()  # the warden ends, and with it everyone
        for descriptor in (*self._streams, *([self.scratch] if self.scratch >= 0 else [])):
            os.close(descriptor)

    @property
    def is_new(self) -> bool:
        """Whether no code has run in it."""
        return self._calls == 0

    @property
    def gone(self) -> bool:
        """Whether all its processes have ended."""
        return self._keeper is None or bool(select.select([self._keeper], [], [], 0)[0])

    async def wait_gone(self, patience_s: float = _GRACE_S) -> None:
        """After `close`: until all processes have ended, by force after `patience_s`."""
        if self._keeper is not None:
            with anyio.move_on_after(patience_s):
                await anyio.wait_readable(self._keeper)
            if not self.gone:
                signal.pidfd_send_signal(self._keeper, signal.SIGKILL)
                await anyio.wait_readable(self._keeper)
        self.release()

    def release(self) -> None:
        """The last step, when all processes have ended."""
        if self._keeper is not None:
            os.close(self._keeper)
            self._keeper = None
        if self._scratch_folder:
            shutil.rmtree(self._scratch_folder, ignore_errors=True)


def _bound(reason: str, bounds: dict[str, Any], limits: Limits) -> str:
    match reason:
        case "wall_time":
            return f"more than {bounds['wall_s']:g} s"
        case "cpu_time":
            return f"more than {bounds['cpu_s']:g} s"
        case "memory":
            return f"more than {bounds['memory'] >> 20} MiB"
        case "processes":
            return f"more than {bounds['processes']}"
        case "output":
            return f"more than {limits.output_bytes} bytes"
        case "scratch":
            return f"more than {limits.scratch_bytes >> 20} MiB or {limits.scratch_files} files"
    return ""
