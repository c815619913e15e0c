"""A request offers tools: the model is told of them, its calls come apart from its text, and it can be made to call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.serve.adapter_book import AdapterBook
from callboard.actors.serve.intake import Intake, IntakeConfig
from callboard.runtime.errors import ConfigError, RequestInvalid
from callboard.schemas.serve import ChatMessage, Generate, Grammar, GrammarKind, ModelToolCall, OfferedTool

from .conftest import write_tiny_model
from .serving import serving

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Delft", "Oslo"]}}, "required": ["city"]}
WEATHER = OfferedTool("weather", "How the weather is.", json.dumps(SCHEMA))
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
CLOCK = OfferedTool("clock", "What time it is.", json.dumps(NOTHING))
ASK = (ChatMessage("user", "How is the weather in Delft?"),)
CALL = ModelToolCall("call00001", "weather", '{"city": "Delft"}')
TURNS = (*ASK, ChatMessage("assistant", "", (CALL,)), ChatMessage("tool", "It rains.", tool_call_id=CALL.id))


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("long") / "tiny.gguf", context_length=2048)


@pytest.fixture
def intake(smollm2_tokenizer: Tokenizer) -> Intake:
    return Intake(IntakeConfig("smollm2", 2000, 60), smollm2_tokenizer, AdapterBook())


def prompt(intake: Intake, **fields: Any) -> str:
    (sequence,) = intake.generate(Generate(**fields))
    return intake.tokenizer.decode(sequence.token_ids, skip_control=False)


def test_the_model_is_told_of_the_tools_and_of_what_they_answered(intake: Intake) -> None:
    told = prompt(intake, messages=TURNS, tools=(WEATHER, CLOCK))
    parts = ("How the weather is.", '"Oslo"', "What time", "in Delft?", '<tool_call>\n{"name": "weather"', "It rains.")
    places = [told.index(part) for part in parts]
    assert places == sorted(places)
    assert told.endswith("<|im_start|>assistant\n")


def test_with_none_the_model_is_not_told(intake: Intake) -> None:
    assert prompt(intake, messages=ASK, tools=(WEATHER,), tool_choice="none") == prompt(intake, messages=ASK)


def test_without_tools_a_conversation_is_what_the_template_makes_of_it(intake: Intake) -> None:
    template = intake.tokenizer.chat_template
    assert template is not None
    assert prompt(intake, messages=ASK) == template.render([{"role": "user", "content": ASK[0].content}])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"tools": (WEATHER, WEATHER)}, "a name of its own"),
        ({"tools": (OfferedTool(""),)}, "a name of its own"),
        ({"tools": (OfferedTool("a", parameters="{"),)}, "parameters of the tool 'a' are no JSON"),
        ({"tools": (OfferedTool("a", parameters="[]"),)}, "no JSON object"),
        ({"tools": (WEATHER,), "tool_choice": "clock"}, "'clock' is none of the tools"),
        ({"tool_choice": "required"}, "without `tools`"),
        ({"tools": tuple(OfferedTool(f"t{i}") for i in range(1025))}, "1,025 tools"),
        ({"tools": (WEATHER,), "messages": (), "prompt": "a"}, "give `messages`"),
        ({"tools": (WEATHER,), "messages": (ChatMessage("narrator", "a"),)}, "no role 'narrator'"),
        ({"messages": (*ASK, ChatMessage("assistant", "", (ModelToolCall("1", "a", "x"),)))}, "arguments of the call"),
        ({"tools": (WEATHER,), "tool_choice": "weather", "grammar": Grammar(GrammarKind.JSON)}, "both a grammar"),
        ({"tools": (OfferedTool("a", "\ud800"),)}, "unicode"),
    ],
)
def test_what_cannot_be_offered_is_refused(intake: Intake, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestInvalid, match=f"(?i){said}"):
        intake.generate(Generate(**{"messages": ASK, **fields}))


@pytest.mark.anyio
@pytest.mark.parametrize("format", ["hermes", "llama3", "internlm", "mistral"])
@pytest.mark.parametrize("choice", ["required", "weather"])
async def test_a_model_that_must_call_a_tool_calls_it_as_its_schema_says(
    long_path: Path, format: str, choice: str
) -> None:
    request = Generate(
        messages=TURNS, tools=(WEATHER, CLOCK), tool_choice=choice, max_tokens=200, temperature=1.0, seed=5, n=2
    )
    async with serving(long_path, num_blocks=512, tool_format=format) as engine:
        async with engine.stream(request) as pieces:
            streamed = "".join([piece.text async for piece in pieces])
            completion = pieces.result
    assert streamed == completion.text == ""
    assert completion.tool_calls == completion.choices[0].tool_calls
    for each in completion.choices:
        assert each.tool_calls
        for call in each.tool_calls:
            assert call.name in ("weather", "clock") if choice == "required" else call.name == "weather"
            jsonschema.validate(json.loads(call.arguments), SCHEMA if call.name == "weather" else NOTHING)


@pytest.mark.anyio
async def test_an_engine_with_a_format_that_is_none_does_not_start(tiny_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format of tool calls 'xml'"):
        async with serving(tiny_path, tool_format="xml"):
            raise AssertionError
