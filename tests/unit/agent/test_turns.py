"""Turns of models, read: ReAct's text, AutoGPT's JSON, arguments of tools."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.autogpt import read_command
from callboard.actors.agent.react_text import Turn, read_turn
from callboard.actors.agent.wording import Unreadable, describe, offered, read_arguments
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
    properties = {
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
    (alone,) = offered([book])
    assert json.loads(alone.parameters) == schema
    many = offered([msgspec.structs.replace(book, name=f"b{n}") for n in range(40)])
    assert len({tool.name for tool in many}) == 40
    assert json.loads(many[7].parameters) == {
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "Of the book."},
            "kind": {"enum": ["a", "title"], "default": {"title": 1}},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/examples"}},
        },
        "required": ["title"],
        "$defs": {"examples": {"type": "integer"}},
    }


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
