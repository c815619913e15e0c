"""Media in JSON by its schema: strings of `format` image, audio or file stand for entries of `media`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from .errors import ToolError
from .schema_of import Media, media_named
from .values import BY_KIND, File, Image

FORMATS: Mapping[str, type[File]] = {kind.value: cls for kind, cls in BY_KIND.items()}


_PLAIN = {str, int, float, bool, type(None)}
_encode = msgspec.json.Encoder().encode


def with_media(value: Any, schema: Mapping[str, Any], media: Media) -> Any:
    """The same value with the media in the place of their names. Raises ValueError where one is not there."""
    return _with(value, schema, schema, media) if media or value else value


def _with(value: Any, part: Any, schema: Mapping[str, Any], media: Media) -> Any:
    part = _followed(part, schema, value)
    kind = FORMATS.get(part.get("format", "")) if isinstance(value, str) else None
    if kind is not None:
        return media_named(kind, value, media)
    if isinstance(value, dict):
        parts, others = part.get("properties", {}), part.get("additionalProperties", {})
        return {key: _with(inner, parts.get(key, others), schema, media) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with(inner, part.get("items", {}), schema, media) for inner in value]
    return value


def _followed(part: Any, schema: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """Past references, and into the alternative that a value of this kind is of."""
    for _ in range(8):  # a reference to itself leads nowhere
        if not isinstance(part, Mapping):
            return {}
        if "$ref" in part:
            part = schema.get("$defs", {}).get(str(part["$ref"]).rpartition("/")[2], {})
        elif options := part.get("anyOf", part.get("oneOf")):
            kind = {str: "string", dict: "object", list: "array"}.get(type(value), "")
            resolved = [_followed(option, schema, value) for option in options]
            part = next((option for option in resolved if option.get("type") == kind), {})
        else:
            return part
    return {}


def without_media(value: Mapping[str, Any], schema: Mapping[str, Any], media: dict[str, File]) -> str:
    """Arguments as JSON, with the media that were in them in `media`.

    Paths, PIL images, bytes and arrays become media where the schema says so, `File` anywhere. Raises ToolError.
    """
    try:
        if _PLAIN.issuperset(map(type, value.values())):
            return _encode(value).decode()
        return msgspec.json.encode(_without(value, schema, schema, media)).decode()
    except (TypeError, ValueError) as error:
        raise ToolError(f"an argument has no form in JSON: {error}") from error


def _without(value: Any, part: Any, schema: Mapping[str, Any], media: dict[str, File]) -> Any:
    part = _followed(part, schema, "" if _is_medium(value) else value)
    if _is_medium(value):
        return _named(_as_file(value, FORMATS.get(part.get("format", ""))), media)
    if isinstance(value, Mapping):
        parts, others = part.get("properties", {}), part.get("additionalProperties", {})
        return {key: _without(inner, parts.get(key, others), schema, media) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without(inner, part.get("items", {}), schema, media) for inner in value]
    return value


def _is_medium(value: Any) -> bool:
    module = type(value).__module__.partition(".")[0]
    return isinstance(value, (File, Path, bytes, memoryview)) or (module == "PIL" and hasattr(value, "save"))


def _as_file(value: Any, kind: type[File] | None) -> File:
    if isinstance(value, File):
        return value
    if isinstance(value, Path):
        return (kind or File).from_path(value) if kind is not None else File.from_path(value).sorted_out()
    if isinstance(value, (bytes, memoryview)):
        return (kind or File).from_bytes(value)
    return Image.from_pil(value)


def _named(file: File, media: dict[str, File]) -> str:
    """Put a medium among the others under a name that no other has; the same one keeps its name."""
    for name, known in media.items():
        if known is file:
            return name
    name, number = file.name or f"{file.kind.value}-{len(media) + 1}", 1
    while name in media:
        number += 1
        name = f"{number}-{file.name or file.kind.value}"
    media[name] = file
    return name
