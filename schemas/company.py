"""What the daemon says of its company file: how what runs compares with it, and what a reload changes."""

from __future__ import annotations

import enum

import msgspec

from .base import ErrorInfo, Message, Request


class Standing(enum.StrEnum):
    """How one actor stands against the file."""

    RUNNING = "running"
    STARTING = "starting"
    ENDED = "ended"
    """It did its work and ended, as one whose restart is transient or temporary may."""
    MISSING = "missing"
    FAILED = "failed"
    DIFFERS = "differs"
    EXTRA = "extra"
    """It runs, and the file does not list it."""


class CompanyActor(msgspec.Struct, frozen=True):
    """`why` is empty where the standing says it all."""

    name: str
    kind: str
    standing: Standing
    why: str = ""


class CompanyState(Message, frozen=True, tag="company.state"):
    """The file's actors in its order, then the others by name. `file` is empty where the daemon has no company file.

    With `problem` the file as it is now cannot be used, and the comparison is with how it was when it last could.
    """

    file: str
    actors: tuple[CompanyActor, ...] = ()
    problem: ErrorInfo | None = None


class GetCompany(Request[CompanyState], frozen=True, tag="company.get"):
    """Ask the daemon's control actor how the company stands; with `settled`, once no start or reload is under way."""

    settled: bool = False


class Action(enum.StrEnum):
    STOP = "stop"
    START = "start"
    RESTART = "restart"
    ADJUST = "adjust"
    """The actor goes on; only the rule by which it is restarted is another one."""
    KEEP = "keep"


class CompanyStep(msgspec.Struct, frozen=True):
    """One change, or `KEEP`: none. `error` is what kept it from being carried out."""

    action: Action
    name: str
    why: str = ""
    error: ErrorInfo | None = None


class CompanyReloaded(Message, frozen=True, tag="company.reloaded"):
    """In the order in which it was done: what is stopped first, then the file's actors as it lists them."""

    file: str
    steps: tuple[CompanyStep, ...]


class ReloadCompany(Request[CompanyReloaded], frozen=True, tag="company.reload"):
    """Have the daemon read its company file again and change what differs; with `dry_run` only say what that is.

    Answered `config` where the file cannot be used; then nothing was changed.
    """

    dry_run: bool = False
