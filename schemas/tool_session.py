"""What a set of tools keeps with the company of the sessions of its callers, so that they outlive its node.

The bytes are the set's own; nobody else reads them. A session goes in parts, and is there once its last part is.
"""

from __future__ import annotations

from .base import Message, Request


class SessionKept(Message, frozen=True, tag="tool.session.kept"):
    """`revision`: of the session as it is now; 0 while parts are missing, or where there is none."""

    revision: int = 0


class KeepSession(Request[SessionKept], frozen=True, kw_only=True, tag="tool.session.keep"):
    """Part `part` of `num_parts` of a session, in order, each under the same `upload`.

    The last one puts the session in the place of the one whose revision is `revision` (0: of none). Errors:
    `tool.sandbox.session_moved` where that is not the one that is there: another owner has written it.
    """

    owner: str
    session: str
    upload: str
    part: int
    num_parts: int
    data: bytes
    revision: int = 0


class SessionPart(Message, frozen=True, tag="tool.session.part"):
    """`num_parts` 0: there is no such session."""

    num_parts: int = 0
    data: bytes = b""
    revision: int = 0


class GetSession(Request[SessionPart], frozen=True, tag="tool.session.get"):
    """Part `part` of a session, of that `revision` where it is not 0."""

    owner: str
    session: str
    part: int = 0
    revision: int = 0


class DropSession(Request[SessionKept], frozen=True, tag="tool.session.drop"):
    owner: str
    session: str
