"""What keeps an old node and a new one from sharing a bus: the changes between two documents of `schema.py`.

Messages, fields with defaults, and choices of a request may be added. All else is a change of meaning: whoever was
built with the old schema would be misunderstood, or would fail to decode what it gets.
"""

from __future__ import annotations

from typing import Any

from .schema import ENVELOPE, FRAME, REF

# What says nothing about which values are valid. A default is compared where its field is.
_NOTES = {"title", "description", "default", "discriminator", "$ref", "x-reply", "x-item"}
_STRUCTURE = {"properties", "required", "prefixItems", "items", "minItems", "anyOf", "enum"}


def breaking_changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for each change in `new` that somebody who knows `old` would stumble over; none if it only adds."""
    comparison = _Comparison(old["$defs"], new["$defs"])
    for part in old["anyOf"]:
        comparison.message(part["$ref"][len(REF) :])
    for name in (ENVELOPE, FRAME):
        if name in old["$defs"]:
            comparison.compare({"$ref": REF + name}, {"$ref": REF + name}, name, choices_may_grow=False)
    return list(dict.fromkeys(comparison.found))


class _Comparison:
    def __init__(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        self._old = old
        self._new = new
        self._seen: set[tuple[str, str, bool]] = set()
        self.found: list[str] = []

    def message(self, tag: str) -> None:
        old, new = self._old[tag], self._new.get(tag)
        if new is None:
            title = old.get("title")
            moved = [
                name for name, schema in self._new.items() if schema.get("title") == title and name not in self._old
            ]
            self._say(tag, f"the tag has changed to {moved[0]}" if moved else "the message is gone")
            return
        self.compare({"$ref": REF + tag}, {"$ref": REF + tag}, tag, choices_may_grow="x-reply" in old)
        for key, what in (("x-reply", "reply"), ("x-item", "item")):
            if (key in old) != (key in new):
                self._say(tag, f"the {what} type is gone" if key in old else f"it has an {what} type now")
            elif key in old:
                self.compare(old[key], new[key], f"{tag} {what}", choices_may_grow=False)

    def compare(self, old: dict[str, Any], new: dict[str, Any], where: str, *, choices_may_grow: bool) -> None:
        """`choices_may_grow` where only new senders send it: who does not know a new choice refuses it by an error."""
        if "$ref" in old and "$ref" in new:
            pair = (old["$ref"], new["$ref"], choices_may_grow)
            if pair in self._seen:
                return
            self._seen.add(pair)
        old, new = _resolved(old, self._old), _resolved(new, self._new)
        for key in sorted((old.keys() | new.keys()) - _NOTES - _STRUCTURE):
            if old.get(key) != new.get(key):
                self._say(where, f"{key} has changed from {old.get(key)!r} to {new.get(key)!r}")
        self._enum(old, new, where, choices_may_grow)
        self._fields(old, new, where, choices_may_grow)
        self._items(old, new, where, choices_may_grow)
        self._alternatives(old, new, where, choices_may_grow)

    def _say(self, where: str, what: str) -> None:
        self.found.append(f"{where}: {what}")

    def _enum(self, old: dict[str, Any], new: dict[str, Any], where: str, may_grow: bool) -> None:
        before, after = old.get("enum"), new.get("enum")
        if (before is None) != (after is None):
            self._say(where, "is no choice any more" if before else "is a choice now")
        for value in before or ():
            if value not in (after or ()):
                self._say(where, f"the choice {value!r} is gone")
        for value in after or ():
            if before is not None and value not in before and not may_grow:
                self._say(where, f"the choice {value!r} is new, and who reads it may not know it")

    def _fields(self, old: dict[str, Any], new: dict[str, Any], where: str, may_grow: bool) -> None:
        before, after = old.get("properties", {}), new.get("properties", {})
        for name, schema in before.items():
            at = f"{where}.{name}"
            if name not in after:
                self._say(at, "the field is gone")
                continue
            self.compare(schema, after[name], at, choices_may_grow=may_grow)
            if "default" in schema and "default" in after[name] and schema["default"] != after[name]["default"]:
                self._say(at, f"the default has changed from {schema['default']!r} to {after[name]['default']!r}")
        for name in new.get("required", ()):
            if name not in before:
                self._say(f"{where}.{name}", "the new field has no default")
            elif name not in old.get("required", ()):
                self._say(f"{where}.{name}", "the field has no default any more")

    def _items(self, old: dict[str, Any], new: dict[str, Any], where: str, may_grow: bool) -> None:
        before, after = old.get("prefixItems", []), new.get("prefixItems", [])
        for index, (one, other) in enumerate(zip(before, after, strict=False)):
            self.compare(one, other, f"{where}[{index}]", choices_may_grow=may_grow)
            if "default" in one and one["default"] != other.get("default"):
                self._say(f"{where}[{index}]", "the default has changed")
        if len(after) < len(before):
            self._say(where, f"the last {len(before) - len(after)} fields are gone")
        if new.get("minItems", 0) != old.get("minItems", 0):
            self._say(where, f"takes {new.get('minItems', 0)} fields at least, not {old.get('minItems', 0)}")
        one, other = old.get("items"), new.get("items")
        if isinstance(one, dict) and isinstance(other, dict):
            self.compare(one, other, f"{where}[]", choices_may_grow=may_grow)
        elif one != other:
            self._say(where, f"items have changed from {one!r} to {other!r}")

    def _alternatives(self, old: dict[str, Any], new: dict[str, Any], where: str, may_grow: bool) -> None:
        before = {_kind(part, self._old): part for part in old.get("anyOf", ())}
        after = {_kind(part, self._new): part for part in new.get("anyOf", ())}
        if bool(before) != bool(after):
            self._say(where, "has one type no more" if after else "has one type now")
            return
        for kind, part in before.items():
            if kind not in after:
                self._say(where, f"may be no {kind} any more")
            else:
                self.compare(part, after[kind], where, choices_may_grow=may_grow)
        for kind in after.keys() - before.keys():
            if not may_grow:
                self._say(where, f"may be a {kind} now, and who reads it may not know that")


def _resolved(schema: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref")
    return defs[name[len(REF) :]] if name is not None else schema


def _kind(schema: dict[str, Any], defs: dict[str, Any]) -> str:
    """What tells the alternatives of a union apart: msgspec allows one struct, or one for each tag, and so on."""
    found = _resolved(schema, defs)
    tag = found.get("properties", {}).get("type", {}).get("const")
    return str(tag or found.get("type") or ("choice" if "enum" in found else "value"))
