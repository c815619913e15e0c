"""JSON Schemas that strangers wrote, made safe to hold values against.

Nothing is ever fetched: what refers to another document is refused. So is what is too large, too deep, or multiplies
by references until reading it takes for ever. Regular expressions are left out of the check, since Python's engine
cannot be stopped once it has begun on a bad one: whoever wrote the schema still sees to its patterns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MAX_BYTES = 256 << 10
MAX_DEPTH = 64
# Schemas that are visited for one value, each time by another way: honest ones have a few hundred.
MAX_VISITS = 20_000

# Keywords whose value is a table of names to schemas: a name in it is no keyword.
_TABLES = frozenset({"properties", "$defs", "definitions", "dependentSchemas", "patternProperties"})
# Keywords whose value is data: nothing in it is a schema.
_DATA = frozenset({"const", "enum", "default", "examples", "example"})
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


class BadSchema(ValueError):
    """Why a schema is not used, in words for whoever wrote it."""


class BadValue(ValueError):
    """Where a value does not fit and why. `path`: a JSON path, `$.items[3].price` say."""

    def __init__(self, path: str, words: str) -> None:
        super().__init__(f"{path}: {words}")
        self.path = path
        self.words = words


class ForeignSchema:
    """Made from a schema's JSON text or its parsed form. Raises BadSchema."""

    def __init__(self, schema: str | dict[str, Any] | bool, *, max_bytes: int = MAX_BYTES) -> None:
        self.parsed, self.text = _parsed(schema, max_bytes)
        _check_shape(self.parsed, 0, table=False)
        _Visits(self.parsed).check()
        self.validator = _Validator(self.parsed, _validator(_harmless(self.parsed, table=False)))

    def check(self, value: Any) -> None:
        """Raises BadValue for a parsed JSON value that does not fit, BadSchema where a reference leads nowhere."""
        from jsonschema.exceptions import best_match

        wrong = best_match(self.validator.iter_errors(value))
        if wrong is not None:
            raise BadValue(wrong.json_path, wrong.message[:500])


class _Validator:
    """As much of a `jsonschema` validator as is used: `schema` as it was written, and the errors of a value."""

    def __init__(self, schema: Any, validator: Any) -> None:
        self.schema = schema
        self._validator = validator

    def iter_errors(self, value: Any) -> Iterator[Any]:
        """Raises BadSchema where its references lead nowhere or have no end."""
        from referencing.exceptions import Unresolvable

        try:
            yield from self._validator.iter_errors(value)
        except Unresolvable as error:
            raise BadSchema(f"the schema refers to {error.ref}, which is not in it") from None
        except RecursionError:
            raise BadSchema("the schema refers to itself without an end, or the value is nested too deep") from None


def _parsed(schema: Any, max_bytes: int) -> tuple[Any, str]:
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        if len(text.encode()) > max_bytes:
            raise BadSchema(f"the schema is over {max_bytes} bytes")
        parsed = json.loads(text) if isinstance(schema, str) else schema
    except BadSchema:
        raise
    except RecursionError:
        raise BadSchema("the schema is nested too deep") from None
    except (ValueError, TypeError) as error:
        raise BadSchema(f"the schema is not JSON: {error}") from None
    if not isinstance(parsed, dict | bool):
        raise BadSchema("a schema is a JSON object")
    return parsed, text


def _check_shape(node: Any, depth: int, *, table: bool) -> None:
    if depth > MAX_DEPTH:
        raise BadSchema(f"the schema is nested deeper than {MAX_DEPTH}")
    if isinstance(node, list):
        for inner in node:
            _check_shape(inner, depth + 1, table=False)
    elif isinstance(node, dict):
        for key, inner in node.items():
            if not table and key in _REFERENCES and not (isinstance(inner, str) and inner.startswith("#")):
                raise BadSchema(f"{key} leads to another document ({str(inner)[:80]}), which is never fetched")
            _check_shape(inner, depth + 1, table=not table and key in _TABLES)


def _harmless(node: Any, *, table: bool) -> Any:
    """A copy without regular expressions, and without what would then refuse the names that they allow."""
    if isinstance(node, list):
        return [_harmless(inner, table=False) for inner in node]
    if not isinstance(node, dict):
        return node
    left_out: set[str] = set()
    if not table:
        left_out.add("pattern")
        if "patternProperties" in node:
            left_out |= {"patternProperties", "additionalProperties", "unevaluatedProperties"}
    return {
        key: inner if not table and key in _DATA else _harmless(inner, table=not table and key in _TABLES)
        for key, inner in node.items()
        if key not in left_out
    }


def _validator(schema: Any) -> Any:
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        words = error.message if isinstance(error, SchemaError) else "it refers to itself without an end"
        raise BadSchema(f"this is no JSON Schema: {words[:500]}") from None
    return kind(schema, registry=Registry())


class _Visits:
    """Counts the schemas that a validator would walk through, references followed: `a` twice in `b`, `b` twice in `c`,
    and so on, is small to write and endless to read."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._counts: dict[str, int] = {}
        self._open: set[str] = set()

    def check(self) -> None:
        if self._count(self._root, 0) > MAX_VISITS:
            raise BadSchema("the schema's references multiply without an end")

    def _count(self, node: Any, depth: int) -> int:
        if depth > MAX_DEPTH * 8:
            raise BadSchema("the schema's references form too long a chain")
        if isinstance(node, list):
            return sum(self._count(inner, depth + 1) for inner in node)
        if not isinstance(node, dict):
            return 0
        count = 1 + sum(self._count(inner, depth + 1) for inner in node.values())
        for name in _REFERENCES:
            if isinstance(reference := node.get(name), str):
                count += self._referred(reference, depth)
        return count

    def _referred(self, reference: str, depth: int) -> int:
        if reference in self._counts:
            return self._counts[reference]
        if reference in self._open:  # a cycle goes as deep as the value does
            return 1
        self._open.add(reference)
        self._counts[reference] = self._count(self._target(reference), depth + 1)
        self._open.discard(reference)
        return self._counts[reference]

    def _target(self, reference: str) -> Any:
        node = self._root
        for part in reference.removeprefix("#").split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and part.isdigit() and int(part) < len(node):
                node = node[int(part)]
            elif isinstance(node, dict):
                node = node.get(part)
            else:
                return None
        return node
