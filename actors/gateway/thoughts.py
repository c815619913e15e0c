"""What a model thought in an earlier turn, said to it again where that turn still goes on.

Models are trained to see their thoughts between a call of a tool and its answer, and no longer once the user speaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ...schemas.serve import ChatMessage
from .reasoning import CLOSE, OPEN


class Turn(NamedTuple):
    message: ChatMessage
    thoughts: str = ""


def with_thoughts(turns: Sequence[Turn]) -> tuple[ChatMessage, ...]:
    """The messages; those after the user's last one begin with what was thought."""
    last = max((index for index, turn in enumerate(turns) if turn.message.role == "user"), default=-1)
    return tuple(_thought(turn) if turn.thoughts and index > last else turn.message for index, turn in enumerate(turns))


def _thought(turn: Turn) -> ChatMessage:
    content = f"{OPEN}\n{turn.thoughts}\n{CLOSE}\n\n{turn.message.content}"
    return msgspec.structs.replace(turn.message, content=content)
