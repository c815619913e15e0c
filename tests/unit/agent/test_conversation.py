"""Compaction of a conversation: what always stays, what goes first, and that it fits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.agent.memory.conversation import (
    SUMMARY_HEADING,
    Limits,
    compact,
    compact_with_summary,
    in_turns,
    put_summary,
    shorten,
    split,
    take_summary,
)
from callboard.actors.agent.memory.errors import ConversationFull
from callboard.actors.agent.memory.summary import summarise_by_model, summary_request
from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.actors.agent.token_estimate import conversation_tokens, cut_to_tokens, estimate_tokens
from callboard.runtime.node import Node
from callboard.schemas.scripted import FinishScript, GetScriptedCalls, Match, ScriptedAnswer
from callboard.schemas.serve import ChatMessage, ModelToolCall

pytestmark = pytest.mark.anyio

texts = st.text(max_size=60)


@st.composite
def exchanges(draw: st.DrawFn) -> list[ChatMessage]:
    """What may stand after the task: a turn of either, or calls with all of their answers."""
    kind = draw(st.sampled_from(["user", "assistant", "calls"]))
    if kind != "calls":
        return [ChatMessage(kind, draw(texts))]
    number = draw(st.integers(0, 10**6))
    ids = [f"c{number}-{place}" for place in range(draw(st.integers(1, 3)))]
    calls = tuple(ModelToolCall(id, "tool", draw(texts)) for id in ids)
    results = [ChatMessage("tool", draw(st.text(max_size=900)), tool_call_id=id) for id in ids]
    return [ChatMessage("assistant", draw(texts), calls), *results]


conversations = st.builds(
    lambda system, task, rest: [*system, task, *(message for one in rest for message in one)],
    st.lists(st.builds(ChatMessage, st.just("system"), texts), max_size=2),
    st.builds(ChatMessage, st.just("user"), texts),
    st.lists(exchanges(), max_size=8),
)


def calls_and_answers_match(messages: Sequence[ChatMessage]) -> bool:
    made = [call.id for message in messages for call in message.tool_calls]
    answered = [message.tool_call_id for message in messages if message.role == "tool"]
    return made == answered


@given(conversations, st.integers(10, 800))
def test_what_is_left_fits_keeps_the_head_and_the_end_and_parts_no_call_from_its_answer(
    messages: list[ChatMessage], budget: int
) -> None:
    limits = Limits(budget)
    try:
        done = compact(messages, limits)
    except ConversationFull:
        head, rest = split(messages)
        results = [m for exchange in rest[-1:] for m in exchange if m.role == "tool"]
        least = conversation_tokens(head) + sum(map(conversation_tokens, rest[-1:]))
        assert least - sum(estimate_tokens(m.content) for m in results) > budget
        return
    assert limits.tokens(done.messages) <= budget
    head, rest = split(messages)
    assert done.messages[: len(head)] == head
    assert calls_and_answers_match(done.messages)
    if rest:
        assert [m.role for m in done.messages][-len(rest[-1]) :] == [m.role for m in rest[-1]]
    kept = len(done.messages) - len(head)
    # What is there and what was dropped are all of it, in order.
    assert len(done.dropped) + kept == len(messages) - len(head)
    assert done.dropped == tuple(messages[len(head) : len(head) + len(done.dropped)])
    if conversation_tokens(messages) <= budget:
        assert done.messages == tuple(messages)


@given(conversations, st.integers(10, 800))
def test_compaction_is_the_same_each_time_and_twice_changes_nothing(messages: list[ChatMessage], budget: int) -> None:
    try:
        once = compact(messages, Limits(budget))
    except ConversationFull:
        return
    assert compact(messages, Limits(budget)) == once
    assert compact(once.messages, Limits(budget)).messages == once.messages


@given(st.text(max_size=400), st.integers(0, 120))
def test_a_shortened_text_fits_and_one_that_fitted_is_left_alone(text: str, num_tokens: int) -> None:
    short = shorten(ChatMessage("tool", text, tool_call_id="c"), num_tokens)
    assert short.tool_call_id == "c"
    assert estimate_tokens(short.content) <= num_tokens
    if estimate_tokens(text) <= num_tokens:
        assert short.content == text


@given(st.text(max_size=80), st.integers(0, 30))
def test_a_cut_text_is_a_beginning_of_it_of_no_more_tokens(text: str, num_tokens: int) -> None:
    cut = cut_to_tokens(text, num_tokens)
    assert text.encode("utf-8", "replace").decode().startswith(cut)
    assert estimate_tokens(cut) <= num_tokens


def talk(*results: str) -> list[ChatMessage]:
    messages = [ChatMessage("system", "be brief"), ChatMessage("user", "the task")]
    for number, result in enumerate(results):
        call = ModelToolCall(f"c{number}", "search", "{}")
        messages += [ChatMessage("assistant", "", (call,)), ChatMessage("tool", result, tool_call_id=call.id)]
    return messages


def test_results_are_shortened_before_anything_is_dropped_the_oldest_first() -> None:
    messages = talk("a" * 4000, "b" * 4000, "c" * 400)
    limits = Limits(1300, short_result=50)
    done = compact(messages, limits)
    assert done.dropped == ()
    assert len(done.messages[3].content) <= 200
    assert "tokens left out" in done.messages[3].content
    assert done.messages[5:] == tuple(messages[5:])
    tighter = compact(messages, Limits(200, short_result=50))
    assert [m.tool_call_id for m in tighter.dropped if m.tool_call_id] == ["c0"]
    assert tighter.dropped[1].content == "a" * 4000  # whole, for whoever makes a summary of it
    assert tighter.messages[-1] == messages[-1]


def test_the_last_result_gives_way_only_where_it_is_too_large_by_itself() -> None:
    messages = talk("x" * 40_000)
    done = compact(messages, Limits(200))
    assert done.dropped == ()
    assert conversation_tokens(done.messages) <= 200
    assert done.messages[-1].content.startswith("xxxx")
    with pytest.raises(ConversationFull, match="there is room for 15"):
        compact(messages, Limits(15))


def test_results_may_be_told_from_other_turns_by_whoever_knows_them() -> None:
    messages = [
        ChatMessage("user", "task"),
        ChatMessage("assistant", "Action: search"),
        ChatMessage("user", "Observation: " + "x" * 4000),
        ChatMessage("assistant", "Action: search"),
        ChatMessage("user", "Observation: short"),
    ]
    limits = Limits(300, is_result=lambda message: message.content.startswith("Observation:"))
    done = compact(messages, limits)
    assert done.dropped == ()
    assert done.messages[2].content.startswith("Observation: xxx")


async def test_a_summary_takes_the_place_of_what_is_dropped_and_is_summed_up_itself(node: Node) -> None:
    answers = (
        ScriptedAnswer(text=" first summary ", match=Match.CONTAINS, pattern="calls search with {}"),
        ScriptedAnswer(text="second summary", match=Match.CONTAINS, pattern="first summary"),
    )
    model = await node.spawn(Scripted, ScriptedConfig(answers=answers), name="model")
    limits = Limits(400, short_result=100)
    messages = talk(*(letter * 600 for letter in "abcde"))
    done = await compact_with_summary(messages, limits, summarise_by_model(model))
    assert limits.tokens(done) <= 400
    assert done[2] == ChatMessage("user", f"{SUMMARY_HEADING}\nfirst summary")
    assert calls_and_answers_match(done)
    assert done[:2] == tuple(messages[:2])
    longer = [*done, *talk("f" * 600, "g" * 600)[2:]]
    again = await compact_with_summary(longer, limits, summarise_by_model(model))
    assert limits.tokens(again) <= 400
    assert take_summary(again)[0] == "second summary"
    assert sum(SUMMARY_HEADING in message.content for message in again) == 1
    await model.ask(FinishScript())
    asked = (await model.ask(GetScriptedCalls())).calls[0].request
    assert asked.max_tokens is not None
    assert asked.max_tokens <= 100


@given(conversations, st.integers(60, 600), st.text(max_size=3000))
async def test_a_summary_of_any_length_still_fits(messages: list[ChatMessage], budget: int, summary: str) -> None:
    async def summarise(told: Sequence[ChatMessage], length: int) -> str:
        assert told
        assert length >= 1
        return summary

    limits = Limits(budget)
    try:
        done = await compact_with_summary(messages, limits, summarise)
    except ConversationFull:
        return
    assert limits.tokens(done) <= budget
    assert calls_and_answers_match(done)


def test_a_summary_is_put_in_and_taken_out() -> None:
    messages = tuple(talk("a", "b"))
    assert take_summary(put_summary(messages, "so far")) == ("so far", messages)
    assert take_summary(messages) == ("", messages)
    assert put_summary(messages, "") == messages
    assert in_turns(put_summary(messages, "so far"))[1].content == f"the task\n\n{SUMMARY_HEADING}\nso far"


def test_what_is_summed_up_is_told_as_text() -> None:
    request = summary_request(talk("found it")[2:], 50, "m")
    assert (request.model, request.max_tokens) == ("m", 50)
    assert request.messages[1].content == "[assistant] (calls search with {})\n\n[tool] found it"
