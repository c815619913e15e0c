"""A response and its events, from the pieces of an answer cut anywhere."""

from __future__ import annotations

from typing import Any

import anyio
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.gateway.responses_build import ResponseBuilder
from callboard.actors.gateway.responses_request import conversation
from callboard.actors.gateway.responses_routes import EventEncoder
from callboard.actors.gateway.responses_types import InputItem, InputPart, ResponseBody
from callboard.runtime.errors import ActorStopped
from callboard.schemas.serve import ChatMessage, Choice, Completion, FinishReason, ModelToolCall, Timings, Token, Usage

CALL = ModelToolCall("call_1", "weather", '{"city": "Delft"}')


class NoWords:
    """No test here asks for log-probabilities."""


async def count(text: str) -> int:
    return len(text.split())


def made(
    pieces: list[str], *, calls: tuple[ModelToolCall, ...] = (), cut: bool = False
) -> tuple[dict[str, Any], list[Any]]:
    """The response, and the events as they are sent."""
    text = "".join(pieces)
    reason = FinishReason.LENGTH if cut else FinishReason.STOP
    choice = Choice(text, (1,), reason, tool_calls=calls)
    completion = Completion(text, reason, Usage(3, 5), Timings(1.0, 1.0), (choice,))
    builder = ResponseBuilder(ResponseBody(input="hello"), "m", NoWords())  # pyright: ignore[reportArgumentType]
    encoded = EventEncoder()
    sent: list[bytes] = []

    async def make() -> None:
        sent.append(encoded(builder.begin()))
        for piece in pieces:
            sent.append(encoded(await builder.push(Token(piece, (1,)))))
        sent.append(encoded(await builder.finish(completion, count)))
        sent.append(encoded([builder.end()]))

    anyio.run(make)
    return builder.response, [decoded(event) for event in b"".join(sent).split(b"\n\n")[:-1]]


def decoded(event: bytes) -> dict[str, Any]:
    name, data = event.split(b"\n")
    value = msgspec.json.decode(data.removeprefix(b"data: "))
    assert name == b"event: " + value["type"].encode()
    return value


def rebuilt(events: list[Any]) -> list[Any]:
    """The output as a client puts it together from the events alone."""
    output: list[Any] = []
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        match event["type"].removeprefix("response."):
            case "output_item.added":
                assert event["output_index"] == len(output)
                output.append(event["item"])
            case "content_part.added":
                assert event["content_index"] == len(output[-1]["content"])
                output[-1]["content"].append(event["part"])
            case "output_text.delta" | "reasoning_text.delta":
                assert event["item_id"] == output[-1]["id"]
                output[-1]["content"][-1]["text"] += event["delta"]
            case "function_call_arguments.delta":
                output[-1]["arguments"] += event["delta"]
            case "output_text.done" | "reasoning_text.done":
                assert event["text"] == output[-1]["content"][-1]["text"]
            case "content_part.done":
                assert event["part"] == output[-1]["content"][-1]
            case "output_item.done":
                output[-1]["status"] = event["item"]["status"]
                assert event["item"] == output[-1]
    return output


@given(st.text(alphabet="ab <>/think\n", max_size=40), st.text(alphabet="ab\n", max_size=10), st.data())
def test_events_of_pieces_cut_anywhere_add_up_to_the_response(thoughts: str, answer: str, data: st.DataObject) -> None:
    thinks, calls, cut = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.booleans())
    text = f"<think>{thoughts}</think>{answer}" if thinks else answer
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    response, events = made(pieces, calls=(CALL,) if calls else (), cut=cut)
    assert rebuilt(events) == response["output"]
    assert events[-1]["response"] == response
    assert response["output"]
    whole, _ = made([text], calls=(CALL,) if calls else (), cut=cut)

    def said(one: dict[str, Any]) -> list[Any]:
        return [(item["type"], item.get("content"), item.get("arguments"), item["status"]) for item in one["output"]]

    assert said(whole) == said(response)


def test_thoughts_are_an_item_of_their_own_before_the_message() -> None:
    response, events = made(["<think>\nHm, a", " city.\n</think>\n\nIt ", "rains."], calls=(CALL,))
    reasoning, message, call = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm, a city."}]
    assert message["content"][0]["text"] == "It rains."
    assert (call["call_id"], call["arguments"]) == (CALL.id, CALL.arguments)
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 3}
    assert [event["type"] for event in events].count("response.reasoning_text.delta") == 2
    assert response["status"] == "completed"


def test_an_answer_that_is_cut_in_its_thoughts_is_incomplete() -> None:
    response, events = made(["<think>and so on and"], cut=True)
    (item,) = response["output"]
    assert (item["type"], item["status"], response["status"]) == ("reasoning", "incomplete", "incomplete")
    assert events[-1]["type"] == "response.incomplete"


def test_a_response_that_fails_in_its_middle_says_so() -> None:
    async def make() -> list[Any]:
        builder = ResponseBuilder(ResponseBody(input="hello"), "m", NoWords())  # pyright: ignore[reportArgumentType]
        builder.begin()
        await builder.push(Token("half an ans", (1,)))
        builder.fail(ActorStopped("it is gone"))
        return [builder.end(), builder.response["output"][0]["status"]]

    last, status = anyio.run(make)
    assert (last["type"], status) == ("response.failed", "incomplete")
    assert last["response"]["error"] == {"code": "server_error", "message": "it is gone"}


def test_what_was_thought_said_and_called_at_once_is_one_turn() -> None:
    def thought(text: str) -> InputItem:
        return InputItem(type="reasoning", content=[InputPart(type="reasoning_text", text=text)])

    call = InputItem(type="function_call", call_id="c1", name="weather", arguments="{}")
    items = [
        InputItem(role="user", content="first"),
        thought("old"),
        InputItem(role="assistant", content="done"),
        InputItem(role="developer", content="Be brief."),
        InputItem(role="user", content="second"),
        thought("new"),
        InputItem(role="assistant", content="Let me see."),
        call,
        InputItem(type="function_call_output", call_id="c1", output="It rains."),
    ]
    assert conversation("Be kind.", items) == (
        ChatMessage("system", "Be kind."),
        ChatMessage("user", "first"),
        ChatMessage("assistant", "done"),
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "second"),
        ChatMessage("assistant", "<think>\nnew\n</think>\n\nLet me see.", (ModelToolCall("c1", "weather", "{}"),)),
        ChatMessage("tool", "It rains.", tool_call_id="c1"),
    )
