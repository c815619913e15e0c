"""The bus as an AsyncAPI 3 document: its subjects as channels, what the company takes and says as operations.

It describes the JSON form, which is what a foreign program speaks; the company is the application that it is about.
AsyncAPI's own schema dialect is built on JSON Schema draft 07, so fixed arrays are written the older way here.
"""

from __future__ import annotations

from typing import Any

from .schema import ENVELOPE, FRAME, REF, references, tag_of_error

SCHEMAS = "#/components/schemas/"
MESSAGES = "#/components/messages/"
# A message of any type, on subjects that carry whatever is said.
ANY = "any"

# What nodes say about themselves, by subject. The rest of what is no answer goes to actors.
_BROADCASTS = {"nodes.hello": "node.hello", "nodes.down": "node.down", "nodes.tap": "node.tap"}
_TAPPED = "node.tapped"


def asyncapi(whole: dict[str, Any], version: str) -> dict[str, Any]:
    """The AsyncAPI 3.0.0 document of a document of `schema.py`."""
    schemas = {name: _draft07(schema) for name, schema in whole["$defs"].items() if name not in (ENVELOPE, FRAME)}
    tags = [part["$ref"][len(REF) :] for part in whole["anyOf"]]
    replies = {tag: _answers_of(whole["$defs"][tag]) for tag in tags if "x-reply" in whole["$defs"][tag]}
    answers = sorted({tag_of_error(), *(answer for found in replies.values() for answer in found)})
    spoken = {*answers, *_BROADCASTS.values(), _TAPPED}
    told = [tag for tag in tags if tag not in spoken or tag in replies]
    channels = {
        "actor": _channel("actor.{address}", "To an actor: requests and plain messages.", told, _ADDRESS),
        "reply": _channel(None, "The reply subject that a request named: its answers.", answers),
        "topic": _channel("topic.{name}", "Free publish and subscribe.", [ANY], _TOPIC),
        "dead": _channel("dead.{address}", "What an actor could not be given.", [ANY], _ADDRESS),
        "tap": _channel("tap.{address}", "What an actor got, while somebody observes.", [_TAPPED], _ADDRESS),
        **{subject: _channel(subject, "What nodes say to each other.", [tag]) for subject, tag in _BROADCASTS.items()},
    }
    operations: dict[str, Any] = {tag: _taken(tag, replies.get(tag)) for tag in told}
    operations["listen"] = _operation("receive", "topic", [ANY], "The company hears what is published.")
    operations["publish"] = _operation("send", "topic", [ANY], "The company publishes.")
    operations["bury"] = _operation("send", "dead", [ANY], "What found no room or no actor, as it came.")
    operations["mirror"] = _operation("send", "tap", [_TAPPED], "Messages mirrored while somebody observes.")
    for subject, tag in _BROADCASTS.items():
        operations[subject] = _operation("send", subject, [tag], "Said by nodes.")
    messages = {tag: _message(tag, whole["$defs"][tag]) for tag in tags}
    messages[ANY] = {
        "name": ANY,
        "summary": "A message of any type.",
        "payload": {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Callboard",
            "version": version,
            "description": "A company of actors on NATS. A payload that starts with '{' is JSON and is answered in "
            "JSON. A request names a NATS reply subject; one that streams is answered by items, each with a reply "
            "subject of its own, and by one last message without.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas},
    }


_ADDRESS = {"address": {"description": "The actor's address: names joined by dots."}}
_TOPIC = {"name": {"description": "Names joined by dots."}}


def _channel(
    address: str | None, description: str, tags: list[str], parameters: dict[str, Any] | None = None
) -> dict[str, Any]:
    channel = {
        "address": address,
        "description": description,
        "messages": {tag: {"$ref": MESSAGES + tag} for tag in tags},
    }
    return {**channel, "parameters": parameters} if parameters else channel


def _operation(action: str, channel: str, tags: list[str], summary: str) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{tag}"} for tag in tags],
    }


def _taken(tag: str, answers: list[str] | None) -> dict[str, Any]:
    if answers is None:
        return _operation("receive", "actor", [tag], f"Take {tag}, which nobody answers.")
    reply = [{"$ref": f"#/channels/reply/messages/{answer}"} for answer in (*answers, tag_of_error())]
    return {
        **_operation("receive", "actor", [tag], f"Answer {tag}."),
        "reply": {"channel": {"$ref": "#/channels/reply"}, "messages": reply},
    }


def _message(tag: str, schema: dict[str, Any]) -> dict[str, Any]:
    message = {"name": tag, "title": schema.get("title", tag), "payload": {"$ref": SCHEMAS + tag}}
    description = schema.get("description")
    return {**message, "description": description} if description else message


def _answers_of(schema: dict[str, Any]) -> list[str]:
    """The messages that may answer a request. A bare value (`null`, a number) is no message and has no name here."""
    direct = (schema.get(key, {}) for key in ("x-item", "x-reply"))
    return list(dict.fromkeys(name for part in direct for name in references(part)))


def _draft07(schema: Any) -> Any:
    """A schema with its references into the components and its fixed arrays as draft 07 has them."""
    if isinstance(schema, list):
        return [_draft07(part) for part in schema]
    if not isinstance(schema, dict):
        return SCHEMAS + schema[len(REF) :] if isinstance(schema, str) and schema.startswith(REF) else schema
    found = {key: _draft07(value) for key, value in schema.items() if key != "discriminator"}
    if "prefixItems" in found:
        found["additionalItems"] = found.pop("items", True)
        found["items"] = found.pop("prefixItems")
    return found
