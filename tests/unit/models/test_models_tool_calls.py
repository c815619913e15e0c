"""The tool calls of a model, in whichever way it writes them, are found in its answers wherever pieces are divided."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.models.tool_formats import FORMATS, HERMES, INTERNLM, LLAMA3, MISTRAL, ToolFormat, tool_format
from callboard.actors.models.tool_parser import ToolCallParser
from callboard.runtime.errors import ConfigError

ADD = ("add", {"a": 1, "b": [2, "é"]})
WRITTEN = [
    (HERMES, '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "é"]}}\n</tool_call>', [ADD]),
    (HERMES, '<tool_call>{"name": "now"}</tool_call>\n<tool_call>{"name": "add", "arguments": '
     '"{\\"a\\": 1, \\"b\\": [2, \\"é\\"]}"}</tool_call>', [("now", {}), ADD]),
    (LLAMA3, '{"name": "add", "parameters": {"a": 1, "b": [2, "é"]}}', [ADD]),
    (LLAMA3, '<|python_tag|>{"name": "now", "parameters": {}}; {"name": "add", "parameters": {"a": 1, "b": [2, "é"]}}',
     [("now", {}), ADD]),
    (INTERNLM, '<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 1, "b": [2, "é"]}}<|action_end|>',
     [ADD]),
    (MISTRAL, '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1, "b": [2, "é"]}}, {"name": "now", "arguments": {}}]',
     [ADD, ("now", {})]),
    (MISTRAL, '[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, "é"]}[TOOL_CALLS]now[ARGS]{}', [ADD, ("now", {})]),
]  # fmt: skip


def parsed(format: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, object]]]:
    parser = ToolCallParser(format)
    text = "".join(map(parser.push, pieces)) + parser.finish()
    ids = [call.id for call in parser.calls]
    assert len(set(ids)) == len(ids)
    assert all(len(one) == 9 and one.isalnum() for one in ids)
    return text, [(call.name, json.loads(call.arguments)) for call in parser.calls]


@pytest.mark.parametrize(("format", "text", "calls"), WRITTEN)
@given(data=st.data())
def test_calls_are_found_however_the_text_is_cut(
    format: ToolFormat, text: str, calls: list[tuple[str, object]], data: st.DataObject
) -> None:
    before = "" if format.is_bare and not text.startswith("<") else data.draw(st.sampled_from(["", "I will add.\n\n"]))
    whole = before + text
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert parsed(format, pieces) == (before.strip(), calls)


@pytest.mark.parametrize(
    ("format", "text"),
    [
        (HERMES, "A <tool_call is a tag. So is < and <tool_"),
        (HERMES, "<tool_call>\nnothing\n</tool_call> and more"),
        (HERMES, '<tool_call>{"name": 3}</tool_call>'),
        (HERMES, '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
        (HERMES, '<tool_call>{"name": "add", "argum'),
        (LLAMA3, '{"city": "Delft", "people": 109577}'),
        (LLAMA3, "A brace { is no call."),
        (INTERNLM, "<|action_start|><|interpreter|>print(1)<|action_end|>"),
        (MISTRAL, "[TOOL_CALLS]what"),
        (MISTRAL, "Words, and then  \n\n two lines \n"),
        (HERMES, "[" * 100_000),
        (LLAMA3, "[" * 100_000),
    ],
)
def test_what_is_no_call_is_text(format: ToolFormat, text: str) -> None:
    assert parsed(format, [text]) == (text, [])
    assert parsed(format, [*text[:200], text[200:]]) == (text, [])


def test_a_good_call_beside_a_bad_one_is_made_and_the_bad_one_is_shown() -> None:
    text, calls = parsed(HERMES, ['<tool_call>{"name": "now"}</tool_call><tool_call>{oops}</tool_call>'])
    assert calls == [("now", {})]
    assert text == "<tool_call>{oops}</tool_call>"


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{{ '<tool_call>' }}", HERMES),
        ("{{ '[TOOL_CALLS]' }}", MISTRAL),
        ("{{ '<|action_start|><|plugin|>' }}", INTERNLM),
        ("{{ '{\"name\": ' }}{{ '\"parameters\": ' }}", LLAMA3),
        ("{{ messages[0].content }}", HERMES),
    ],
)
def test_the_chat_template_shows_the_format(template: str, found: ToolFormat) -> None:
    assert tool_format(template) is found
    assert tool_format(template, "mistral") is MISTRAL


def test_an_unknown_format_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ConfigError, match="no format of tool calls 'xml'") as refused:
        tool_format("", "xml")
    assert all(name in refused.value.hint for name in FORMATS)


@pytest.mark.parametrize("format", FORMATS.values())
def test_what_fits_the_schema_of_a_call_is_a_call(format: ToolFormat) -> None:
    numbers = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    schema = format.schema({"add": numbers, "now": {"type": "object"}})
    call = {"name": "add", format.arguments: {"a": 1}}
    written = [call] if format.as_list else call
    jsonschema.validate(written, schema)
    assert parsed(format, [format.opens + json.dumps(written) + format.closes]) == ("", [("add", {"a": 1})])
    for wrong in ({**call, "name": "sub"}, {**call, format.arguments: {}}, {**call, "more": 1}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([wrong] if format.as_list else wrong, schema)
