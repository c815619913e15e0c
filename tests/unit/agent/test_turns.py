"""Turns of models, read: ReAct's text, AutoGPT's JSON, arguments of tools."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.autogpt import read_command
from callboard.actors.agent.react_text import Turn, read_turn
from callboard.actors.agent.wording import DESCRIBED, OFFERED, Unreadable, describe, offered, read_arguments
from callboard.schemas.serve import OfferedTool
from callboard.schemas.tool import ToolInfo

SEARCH = ToolInfo("search", "Finds.", '{"type":"object","properties":{"query":{"type":"string"}}}', "{}")
ADD = ToolInfo(
    "add", "Adds\n two.",
    '{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"integer"}},"required":["a"]}', "{}",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("Thought: hm\nAction: search\nAction Input: {\"query\": \"x\"}", Turn("hm", "search", '{"query": "x"}')),
        ("hm\nAction: search[x [y]]", Turn("hm", "search", "x [y]")),
        ("**Thought:** a\n**Action:** `search`\n**Action Input:** x", Turn("a", "search", "x")),
        ("Thought: done\nFinal Answer: 42\nand more", Turn("done", answer="42\nand more")),
        ("Action: a\nAction Input: 1\nObservation: made up\nAction: b\nAction Input: 2", Turn("", "a", "1")),
        ("Thought: a\nAction: search\nAction Input: {\n\"query\":\n\"x\"}\n", Turn("a", "search", '{\n"query":\n"x"}')),
        ("nothing of the kind", Turn("nothing of the kind")),
        ("", Turn()),
        ("action: search\naction input: x", Turn("", "search", "x")),
    ],
)  # fmt: skip
def test_a_turn_is_read_however_it_is_written(text: str, turn: Turn) -> None:
    assert read_turn(text) == turn


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    read_turn(text)


@pytest.mark.parametrize(
    ("tool", "text", "expected"),
    [
        (SEARCH, '{"query": "a"}', {"query": "a"}),
        (SEARCH, "a bare text", {"query": "a bare text"}),
        (SEARCH, '"quoted"', {"query": "quoted"}),
        (SEARCH, "{'query': 'single',}", {"query": "single"}),
        (SEARCH, '```json\n{"query": "fenced"}\n```', {"query": "fenced"}),
        (SEARCH, '{"query": "cut off', {"query": "cut off"}),
        (ADD, "3", {"a": 3}),
        (ADD, '{"a": 1, "b": 2}', {"a": 1, "b": 2}),
        (None, "", {}),
    ],
)
def test_arguments_are_read_however_they_are_written(tool: ToolInfo | None, text: str, expected: object) -> None:
    assert json.loads(read_arguments(tool, text)) == expected


@pytest.mark.parametrize("text", ["{]", "{" * 5000, "1 2"])
def test_arguments_that_mean_nothing_are_given_back(text: str) -> None:
    with pytest.raises(Unreadable):
        read_arguments(None, text)


def test_tools_are_described_with_their_arguments() -> None:
    assert describe([ADD]) == "- add(a: integer, b?: integer): Adds two."


def test_schemas_of_many_tools_lose_what_only_people_read() -> None:
    properties: dict[str, Any] = {
        "title": {"type": "string", "title": "Title", "description": f"Of the book. {'And more. ' * 20}"},
        "kind": {"enum": ["a", "title"], "default": {"title": 1}},
        "parts": {"type": "array", "items": {"$ref": "#/$defs/examples"}},
    }
    schema = {
        "type": "object",
        "title": "Book",
        "properties": properties,
        "required": ["title"],
        "$defs": {"examples": {"type": "integer", "examples": [1]}},
    }
    book = msgspec.structs.replace(ADD, name="book", input_schema=json.dumps(schema))
    whole: dict[str, Any] = {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": properties["title"]["description"]},
            "kind": {"enum": ["a", "title"], "default": {"title": 1}},
            "parts": {"type": "array", "items": {"type": "integer"}},
        },
        "required": ["title"],
    }
    (alone,) = offered([book])
    assert json.loads(alone.parameters) == whole
    many = offered([msgspec.structs.replace(book, name=f"b{n}") for n in range(40)])
    assert len({tool.name for tool in many}) == 40
    whole["properties"]["title"]["description"] = "Of the book."
    assert json.loads(many[37].parameters) == whole


LONG = ToolInfo(
    "library.find",
    "Find books. In all branches.\n\nAsks each branch's catalogue, which takes a while, and joins what they say.",
    json.dumps({
        "type": "object",
        "title": "Find",
        "properties": {
            "title": {"type": "string", "description": "Words of the title. In any order."},
            "shelf": {"$ref": "#/$defs/Shelf", "description": "Where to look."},
            "limit": {"type": "integer", "default": 10, "description": "At most so many. The best come first."},
        },
        "required": ["title"],
        "additionalProperties": False,
        "$defs": {
            "Shelf": {
                "title": "Shelf",
                "type": "object",
                "properties": {"floor": {"type": "integer"}, "next": {"$ref": "#/$defs/Shelf"}},
            }
        },
    }),
    "{}",
)  # fmt: skip


def test_a_whole_schema_is_inlined_and_keeps_arguments_that_are_called_like_keywords() -> None:
    (whole,) = offered([LONG])
    assert (whole.name, whole.description) == ("library.find", LONG.description)
    parameters = json.loads(whole.parameters)
    assert parameters["properties"]["title"]["type"] == "string"
    assert parameters["properties"]["shelf"]["properties"]["floor"] == {"type": "integer"}
    assert "$defs" not in whole.parameters
    assert "title" not in parameters


@given(st.integers(1, 3000))
def test_a_room_is_kept_wherever_what_is_required_fits(room: int) -> None:
    (compact,), (least,) = offered([LONG], room), offered([LONG], 1)
    parameters = json.loads(compact.parameters)
    assert room_of([compact]) <= max(room, room_of([least]))
    assert "title" in parameters["properties"]
    assert parameters["required"] == ["title"]
    assert compact.description.startswith("Find books")


def test_more_room_never_says_less() -> None:
    sizes = [room_of(offered([LONG], room)) for room in range(1, room_of(offered([LONG])) + 10, 7)]
    assert sizes == sorted(sizes)


def huge(name: str = "huge") -> ToolInfo:
    """A tool whose schema says much itself, and more by references that multiply."""
    kinds: dict[str, Any] = {
        f"Kind{n}": {
            "type": "object",
            "description": f"Kind {n}. {'It goes on. ' * 20}",
            "properties": {f"next{m}": {"$ref": f"#/$defs/Kind{(n + m) % 12}"} for m in range(12)},
        }
        for n in range(12)
    }
    properties = {
        f"argument{n}": {"$ref": f"#/$defs/Kind{n % 12}", "description": f"Number {n}. {'And so on. ' * 30}"}
        for n in range(40)
    }
    schema = {"type": "object", "properties": properties, "required": ["argument0", "argument7"], "$defs": kinds}
    return ToolInfo(name, f"Does it. {'At length. ' * 200}", json.dumps(schema), "{}")


def room_of(tools: Iterable[OfferedTool]) -> int:
    return sum(len(tool.name) + len(tool.description) + len(tool.parameters) for tool in tools)


@pytest.mark.parametrize("room", [600, 2000, OFFERED])
def test_a_huge_schema_is_cut_to_the_room_that_there_is(room: int) -> None:
    (found,) = offered([huge()], room)
    assert room_of([found]) <= room
    assert "$ref" not in found.parameters
    assert {"argument0", "argument7"} <= set(json.loads(found.parameters)["properties"])
    assert json.loads(found.parameters)["required"] == ["argument0", "argument7"]
    assert found.description.startswith("Does it.")
    line = describe([huge()], room)
    assert len(line) <= room
    assert "argument0: object" in line


@pytest.mark.parametrize("number", [1, 20, 100])
def test_many_tools_are_told_of_in_the_room_that_there_is(number: int) -> None:
    """A hundred, one of them huge: that one gives up its share, and the short ones lose nothing."""
    tools = [msgspec.structs.replace(ADD, name=f"add{n}") for n in range(number)] + [huge()]
    found = offered(tools)
    assert room_of(found) <= OFFERED
    assert [tool.name for tool in found] == [tool.name for tool in tools]
    for tool in found[:-1]:
        assert json.loads(tool.parameters) == json.loads(ADD.input_schema)
    assert len(describe(tools)) <= DESCRIBED
    assert describe(tools).startswith("- add0(a: integer, b?: integer): Adds two.")


@given(st.integers(1, 8), st.integers(500, 20_000))
def test_the_room_is_kept_wherever_names_fit(number: int, room: int) -> None:
    tools = [huge(f"huge{n}") for n in range(number)]
    least = room_of(offered(tools, 0))
    assert room_of(offered(tools, room)) <= max(room, least)
    assert least <= 150 * number


def test_a_tool_whose_schema_is_none_takes_any_object() -> None:
    strange = [msgspec.structs.replace(ADD, input_schema=text) for text in ("", "[1]", "{", '{"type": "object"}')]
    assert {tool.parameters for tool in offered(strange)} <= {'{"type":"object"}', '{"type":"object","properties":{}}'}
    assert {tool.parameters for tool in offered(strange, 1)} == {'{"type":"object"}'}


def test_what_is_said_of_many_tools_is_cut_to_a_sentence_each() -> None:
    more = "More of it. " * 50
    wordy = [msgspec.structs.replace(ADD, name=f"t{n}", description=f"Adds {n}. {more}") for n in range(50)]
    said = describe(wordy)
    assert said.splitlines()[7] == "- t7(a: integer, b?: integer): Adds 7."
    assert len(said) < 6000
    assert describe(wordy[:2]).count("More of it.") == 100


def test_a_command_is_read_and_repaired() -> None:
    turn = read_command('Sure! {"thoughts": {"text": "a", "plan": ["x"]}, "command": {"name": "go", "args": {"n": 1}}}')
    assert (turn.command.name, turn.command.args, turn.thoughts.text) == ("go", {"n": 1}, "a")
    assert read_command("{'command': {'name': 'go', 'args': {},}}").command.name == "go"


@pytest.mark.parametrize("text", ["", "no", "{}", '{"command": 3}', '{"command": {"name": "a", "args": [1]}}'])
def test_a_command_that_is_none_says_why(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_command(text)
