"""What a call came to: JSON, the media named in it, and a text of the same for a model to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from .values import File


@dataclass(frozen=True)
class Reply:
    """What a tool gives back, or yields last, where the text for a model is to be other than the value as JSON."""

    value: Any
    text: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """`value` is JSON as the output schema says; a medium in it is the name of an entry of `media`.

    `schema` is that output schema, which says where media are.
    """

    value: str
    text: str
    media: Mapping[str, File] = {}
    schema: Mapping[str, Any] = {}

    @property
    def data(self) -> Any:
        """The value read: text, numbers, lists, dictionaries, with each medium in the place of its name."""
        found = msgspec.json.decode(self.value)
        if isinstance(found, str) and not self.schema:
            return self.media.get(found, found)
        if not self.media:
            return found
        from .media_json import with_media

        return with_media(found, self.schema, self.media)


def text_of(value: Any, encoded: str, media: Mapping[str, File]) -> str:
    """A value for a model to read: a text as it is, media by what they are, the rest as JSON."""
    if not media:
        return value if isinstance(value, str) else encoded
    shown = [f"[{file.kind.value} {name}, {file.mime}, {file.size} bytes]" for name, file in media.items()]
    if media and encoded in {msgspec.json.encode(name).decode() for name in media}:
        return shown[0]
    return "\n".join([encoded, *shown])
