"""Schemas of strangers: what fits is found to fit, nothing is fetched, nothing takes for ever."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.foreign_schema import MAX_BYTES, BadSchema, BadValue, ForeignSchema


def test_values_are_held_against_it_and_the_path_is_named() -> None:
    schema = ForeignSchema(
        {
            "type": "object",
            "properties": {"items": {"type": "array", "items": {"$ref": "#/$defs/item"}}},
            "$defs": {"item": {"type": "object", "required": ["price"], "properties": {"price": {"minimum": 0}}}},
        }
    )
    schema.check({"items": [{"price": 1}]})
    with pytest.raises(BadValue) as raised:
        schema.check({"items": [{"price": 1}, {"price": -1}]})
    assert raised.value.path == "$.items[1].price"


def test_another_document_is_never_fetched() -> None:
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)

        def listen() -> None:
            try:
                server.accept()[0].close()
                asked.set()
            except TimeoutError:
                pass

        thread = threading.Thread(target=listen)
        thread.start()
        base = f"http://127.0.0.1:{server.getsockname()[1]}/"
        refused: list[dict[str, Any]] = [
            {"$ref": base + "schema.json"},
            {"properties": {"x": {"items": [{"$dynamicRef": base}]}}},
            {"$ref": "other.json"},
            {"$ref": "file:///etc/passwd"},
        ]
        for schema in refused:
            with pytest.raises(BadSchema, match="never fetched"):
                ForeignSchema(schema)
        with pytest.raises(BadSchema):  # it says that it lies there, and refers within
            ForeignSchema({"$id": base, "allOf": [{"$ref": "#/nowhere"}]}).check(1)
        with pytest.raises(BadSchema):
            ForeignSchema({"$schema": base, "type": "nothing"})
        thread.join()
    assert not asked.is_set()


def doubling(times: int) -> dict[str, Any]:
    defs = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(times)}
    return {"$defs": {**defs, f"a{times}": {}}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    "schema",
    [
        "[]",
        "nothing",
        '"text"',
        json.dumps({"description": "x" * MAX_BYTES}),
        '{"not":' * 5000 + "{}" + "}" * 5000,
        '{"not":' * 70 + "{}" + "}" * 70,
        json.dumps(doubling(40)),
        json.dumps({"type": 7}),
        json.dumps({"$ref": 7}),
    ],
    ids=["list", "no-json", "text", "large", "deep", "deeper-than-allowed", "doubling", "wrong", "ref-number"],
)
def test_hostile_ones_are_refused_at_once(schema: str) -> None:
    began = time.process_time()
    with pytest.raises(BadSchema):
        ForeignSchema(schema)
    assert time.process_time() - began < 2.0


def test_one_that_refers_to_itself_ends_with_an_error_or_with_the_value() -> None:
    tree = ForeignSchema({"type": "object", "properties": {"left": {"$ref": "#"}}})
    tree.check({"left": {"left": {}}})
    with pytest.raises(BadValue):
        tree.check({"left": {"left": 1}})
    with pytest.raises(BadSchema, match="without an end"):
        ForeignSchema({"allOf": [{"$ref": "#"}, {"$ref": "#"}]}).check(1)


def test_patterns_are_left_out_and_names_that_they_allow_stay_allowed() -> None:
    slow = ForeignSchema({"properties": {"x": {"pattern": "^(a+)+$"}, "pattern": {"type": "integer"}}})
    slow.check({"x": "a" * 64 + "!"})
    with pytest.raises(BadValue):  # a property of that name is no keyword
        slow.check({"pattern": "text"})
    names = ForeignSchema({"patternProperties": {"^(b+)+$": {"type": "integer"}}, "additionalProperties": False})
    names.check({"b" * 64 + "!": 1})


def test_data_in_a_schema_is_no_schema() -> None:
    ForeignSchema({"const": {"pattern": "("}}).check({"pattern": "("})
    with pytest.raises(BadValue):
        ForeignSchema({"enum": [{"pattern": "("}]}).check({})


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("$ref"), inner),
        max_leaves=12,
    )
)
def test_whatever_comes_it_is_a_schema_or_refused(found: Any) -> None:
    try:
        ForeignSchema(json.dumps(found)).check({"x": [1]})
    except (BadSchema, BadValue):
        pass
