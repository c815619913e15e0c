"""Images, sounds and files that a call names: those of earlier results whose names stand in its arguments."""

from __future__ import annotations

from ...schemas.agent_log import ToolAnswered
from ...schemas.tool import Media
from .log import RunLog


def media_in(log: RunLog, arguments: str) -> tuple[Media, ...]:
    """Of two of one name, the later."""
    found: dict[str, Media] = {}
    for event in log.events:
        if isinstance(event, ToolAnswered):
            found |= {media.name: media for media in event.media if f'"{media.name}"' in arguments}
    return tuple(found.values())
