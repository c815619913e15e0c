"""Every message as JSON Schema 2020-12: what `callboard schema` prints and what the committed snapshot holds.

Our own messages are found by walking `schemas/`; those of other packages through the actor kinds that they announce,
which are imported for it. A message goes by its tag, since that is its name on the bus.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from .. import schemas
from ..schemas.base import ErrorInfo, Message, Request, StreamRequest
from ..schemas.wire import Envelope, Frame
from .actor import spec_of
from .errors import CallboardError, UsageError
from .kinds import known_kinds, resolve_kind
from .matching import did_you_mean
from .messages import answers, tag_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REF = "#/$defs/"
ENVELOPE, FRAME = "Envelope", "Frame"
_OURS = "callboard"
_BASES = (Message, Request, StreamRequest)


@dataclass
class Messages:
    """Message classes by tag. `left_out` says, in a line each, what could not be taken in and why."""

    by_tag: dict[str, type[Message]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, message: type[Message], package: str) -> None:
        tag = tag_of(message)
        known = self.by_tag.setdefault(tag, message)
        if known is not message:
            self.left_out.append(f"{package}: {message.__qualname__} has the tag {tag} of {known.__qualname__}")


def own_messages() -> Messages:
    """Those of Callboard itself."""
    found = Messages()
    for module in pkgutil.walk_packages(schemas.__path__, f"{schemas.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if _is_message(value) and value.__module__ == module.name:
                found.add(value, _OURS)
    return found


def all_messages() -> Messages:
    """Those of Callboard, and those that the actor kinds of other packages take and answer with."""
    found = own_messages()
    for name, entry in known_kinds().items():
        if entry.package == _OURS:
            continue
        try:
            handled = spec_of(resolve_kind(name)).handlers
            for message in handled:
                for part in _messages_of(message):
                    found.add(part, entry.package)
        except (CallboardError, TypeError) as error:
            found.left_out.append(f"{entry.package}: the actor kind {name}: {error}")
    return found


def document(messages: dict[str, type[Message]], version: str) -> dict[str, Any]:
    """One schema that every message fits, with each in `$defs` under its tag.

    A request says what answers it: `x-reply`, and `x-item` if it streams. `Envelope` and `Frame` are the arrays that
    carry messages in MessagePack; a message in JSON travels bare.
    """
    wanted: list[Any] = [*messages.values(), ErrorInfo, Envelope[Any], Frame[Any]]
    names = [*messages, tag_of_error(), ENVELOPE, FRAME]
    replies: dict[str, tuple[int, int | None]] = {}
    for tag, message in messages.items():
        if issubclass(message, Request):
            found = answers(message)
            replies[tag] = (len(wanted), None if found.item is None else len(wanted) + 1)
            wanted += [found.result] if found.item is None else [found.result, found.item]
    parts, components = msgspec.json.schema_components(wanted, ref_template=REF + "{name}")
    renamed = {part["$ref"]: REF + name for part, name in zip(parts, names, strict=False)}
    defs = {renamed.get(REF + name, REF + name)[len(REF) :]: schema for name, schema in components.items()}
    for tag in (*messages, tag_of_error()):
        defs[tag]["properties"]["type"] = {"const": tag}
    for tag, (reply, item) in replies.items():
        defs[tag]["x-reply"] = parts[reply]
        if item is not None:
            defs[tag]["x-item"] = parts[item]
    defs[ENVELOPE]["title"], defs[FRAME]["title"] = ENVELOPE, FRAME
    for schema in defs.values():
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    whole = {
        "$schema": DIALECT,
        "title": "Messages of Callboard",
        "description": f"What crosses the bus, as of version {version}.",
        "anyOf": [{"$ref": REF + tag} for tag in sorted((*messages, tag_of_error()))],
        "$defs": {name: _with_refs(defs[name], renamed) for name in sorted(defs)},
    }
    return msgspec.json.decode(msgspec.json.encode(whole))  # plain JSON: a default may be a tuple


def one_message(whole: dict[str, Any], tag: str) -> dict[str, Any]:
    """The schema of one message with what it refers to, its answers included. Raises UsageError for an unknown tag."""
    if {"$ref": REF + tag} not in whole["anyOf"]:
        tags = [part["$ref"][len(REF) :] for part in whole["anyOf"]]
        guess = did_you_mean(tag, tags)
        raise UsageError(
            f"there is no message '{tag}'",
            hint=f"did you mean '{guess}'?" if guess else "`callboard schema` prints all of them",
        )
    needed = {tag}
    open_ends = [tag]
    while open_ends:
        for name in references(whole["$defs"][open_ends.pop()]):
            if name not in needed:
                needed.add(name)
                open_ends.append(name)
    return {
        "$schema": whole["$schema"],
        "$ref": REF + tag,
        "$defs": {name: schema for name, schema in whole["$defs"].items() if name in needed},
    }


def references(schema: Any) -> Iterator[str]:
    """The names in `$defs` that a piece of schema refers to, itself or in its answers."""
    if isinstance(schema, dict):
        if isinstance(name := schema.get("$ref"), str):
            yield name[len(REF) :]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def tag_of_error() -> str:
    return str(ErrorInfo.__struct_config__.tag)


def _is_message(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Message) and value not in _BASES


def _messages_of(message: type[Message]) -> Iterator[type[Message]]:
    """A message, and those that answer it."""
    yield message
    if issubclass(message, Request):
        found = answers(message)
        for answer in (found.item, found.result):
            yield from (part for part in (answer, *typing.get_args(answer)) if _is_message(part))


def _with_refs(schema: Any, renamed: dict[str, str]) -> Any:
    """The same with each reference as `renamed` says, those of a discriminator's mapping included."""
    if isinstance(schema, dict):
        return {key: _with_refs(value, renamed) for key, value in schema.items()}
    if isinstance(schema, list):
        return [_with_refs(part, renamed) for part in schema]
    return renamed.get(schema, schema) if isinstance(schema, str) else schema
