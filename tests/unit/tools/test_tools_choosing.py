"""Finding a tool among many, and telling a small model of it: relevance, versions, and schemas within a budget."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.tools.commands_call import read_values
from callboard.actors.tools.errors import NoSuchTool
from callboard.actors.tools.relevance import Ranking, chosen, newest, version_key, words
from callboard.runtime.errors import UsageError
from callboard.schemas.tool import ListTools, ToolAnnotations, ToolInfo


def info(name: str, description: str = "", version: str = "", schema: Any = None, **more: Any) -> ToolInfo:
    return ToolInfo(name, description or name, json.dumps(schema or {"type": "object"}), "{}", version=version, **more)


MANY = [
    info("calculator", "Compute an arithmetic expression with units.", tags=("math",)),
    info("files.read", "Read a text file within the given folders."),
    info("files.search", "Search the text of files for a pattern."),
    info("web.search", "Search the web and give back titles, addresses and excerpts."),
    info("web.fetch", "Fetch a page of the web as text."),
    info(
        "weather.forecast", "The weather of the next days.", schema={"properties": {"city": {"description": "where"}}}
    ),
    info("images.describe", "Say what a picture shows.", tags=("vision",)),
]


@pytest.mark.parametrize(
    ("query", "best"),
    [
        ("search the web for news", "web.search"),
        ("reading a file", "files.read"),
        ("what is in this picture?", "images.describe"),
        ("forecasts for my city", "weather.forecast"),
        ("math", "calculator"),
        ("computing arithmetic expressions", "calculator"),
        ("fetching pages", "web.fetch"),
    ],
)
def test_the_most_relevant_tool_comes_first(query: str, best: str) -> None:
    assert Ranking(MANY).ranked(query)[0].name == best


def test_what_has_nothing_to_do_with_the_query_is_not_there() -> None:
    assert Ranking(MANY).ranked("the of and") == []
    assert {tool.name for tool in Ranking(MANY).ranked("web")} == {"web.search", "web.fetch"}


def test_a_list_is_narrowed_by_names_and_says_how_many_there_are() -> None:
    found = chosen(MANY, ListTools(names=("web.*", "calculator"), limit=2))
    assert ([tool.name for tool in found.tools], found.total) == (["calculator", "web.search"], 3)


def test_words_of_one_stem_are_one_word() -> None:
    assert len({tuple(words(form)) for form in ("search", "searches", "searching", "searched")}) == 1
    assert words("readFile") == words("read file")
    assert words("The cities") == words("city")


def test_the_newest_version_is_meant_where_none_is_named() -> None:
    versions = [info("x", version=version) for version in ("1.9", "", "1.10", "1.2b")]
    assert newest(versions, "x").version == "1.10"
    assert newest(versions, "x@1.9").version == "1.9"
    with pytest.raises(NoSuchTool, match="no version 3") as raised:
        newest(versions, "x@3")
    assert "1.10" in raised.value.hint
    with pytest.raises(NoSuchTool) as raised:
        newest(MANY, "files.raed")
    assert "files.read" in raised.value.hint


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=2))
def test_versions_are_ordered_as_their_numbers(numbers: list[tuple[int, int]]) -> None:
    texts = [f"{major}.{minor}" for major, minor in numbers]
    assert sorted(texts, key=version_key) == [f"{a}.{b}" for a, b in sorted(numbers)]


SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "loud": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string"}},
        "numbers": {"type": "array", "items": {"type": "integer"}},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "unit": {"enum": ["1", "m"]},
        "more": {},
        "box": {"$ref": "#/$defs/Box"},
        "photo": {"type": "string", "format": "image"},
    },
    "required": ["text"],
    "$defs": {"Box": {"type": "object"}},
}


@pytest.mark.parametrize(
    ("given_", "meant"),
    [
        (["text=5"], {"text": "5"}),
        (["hello=world"], {"hello": "world"}),
        (["2 + 2 = 4"], {"text": "2 + 2 = 4"}),
        (["count=5", "share=0.5", "loud=true"], {"count": 5, "share": 0.5, "loud": True}),
        (["count=many"], {"count": "many"}),
        (["share=null"], {"share": "null"}),
        (["words=a", "words=7"], {"words": ["a", "7"]}),
        (['words=["a", "b"]', "numbers=1", "numbers=2"], {"words": ["a", "b"], "numbers": [1, 2]}),
        (["either=5", "unit=1"], {"either": 5, "unit": "1"}),
        (['more={"a": 1}', 'box={"b": 2}', "more=[1]"], {"more": [1], "box": {"b": 2}}),
    ],
)
def test_values_on_the_command_line_are_read_by_the_schema(given_: list[str], meant: dict[str, Any]) -> None:
    assert read_values(given_, SCHEMA) == meant


def test_a_value_without_a_name_needs_an_argument_to_go_to() -> None:
    with pytest.raises(UsageError, match="no KEY=VALUE"):
        read_values(["a b", "c d"], SCHEMA)


def test_a_photo_is_a_file() -> None:
    assert str(read_values(["photo=@a/b.png"], SCHEMA)["photo"]) == "a/b.png"


def test_annotations_have_the_protocols_cautious_defaults() -> None:
    assert msgspec.to_builtins(ToolAnnotations()) == {
        "title": "",
        "read_only": False,
        "destructive": True,
        "idempotent": False,
        "open_world": True,
    }
