"""The scripted model: which answer is for which call, what it keeps of a server's manners, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import anyio
import pytest

from callboard.actors.agent.script import UnexpectedCall, UnusedAnswers
from callboard.actors.agent.scripted import Scripted, ScriptedConfig
from callboard.runtime.errors import ConfigError, ModelError, RequestInvalid
from callboard.runtime.node import Node
from callboard.schemas.scripted import (
    AwaitCalls,
    CallOutcome,
    ExtendScript,
    FinishScript,
    GetScriptedCalls,
    Match,
    Part,
    ReleaseScript,
    ScriptedAnswer,
)
from callboard.schemas.serve import ChatMessage, FinishReason, Generate, ModelToolCall, Token

pytestmark = pytest.mark.anyio


class Judging(Scripted):
    predicates: ClassVar = {"short": lambda request: len(request.messages[-1].content) < 5}


def said(text: str, session: str = "", **more: object) -> Generate:
    return Generate(messages=(ChatMessage("system", "be brief"), ChatMessage("user", text)), session=session, **more)  # pyright: ignore[reportArgumentType]


async def test_answers_come_in_order_and_the_end_is_clean(node: Node) -> None:
    script = ScriptedConfig(answers=(ScriptedAnswer(text="one"), ScriptedAnswer(text="two")))
    model = await node.spawn(Scripted, script, name="model")
    assert [(await model.ask(said("x"))).text for _ in range(2)] == ["one", "two"]
    state = await model.ask(FinishScript())
    assert (state.calls, state.unused, state.waiting) == (2, (), 0)
    assert state.prompt_tokens > 0


async def test_a_call_that_the_script_does_not_foresee_fails_now_and_at_the_end(node: Node) -> None:
    answer = ScriptedAnswer(text="4", match=Match.EXACT, pattern="2+2?")
    model = await node.spawn(Scripted, ScriptedConfig(answers=(answer,)), name="model")
    with pytest.raises(UnexpectedCall, match=r"3\+3") as failed:
        await model.ask(said("3+3?"))
    assert "2+2?" in failed.value.hint
    assert (await model.ask(said("2+2?"))).text == "4"
    with pytest.raises(UnexpectedCall, match="1 calls"):
        await model.ask(FinishScript())
    outcomes = [call.outcome for call in (await model.ask(GetScriptedCalls())).calls]
    assert outcomes == [CallOutcome.UNEXPECTED, CallOutcome.ANSWERED]


async def test_answers_that_are_left_fail_the_end(node: Node) -> None:
    answers = (ScriptedAnswer(text="one"), ScriptedAnswer(text="two", times=2), ScriptedAnswer(text="any", times=0))
    model = await node.spawn(Scripted, ScriptedConfig(answers=answers), name="model")
    await model.ask(said("x"))
    await model.ask(said("x"))
    with pytest.raises(UnusedAnswers, match=r"1 of 3 .* first at 1: 'two'"):
        await model.ask(FinishScript())
    await model.ask(said("x"))
    await model.ask(FinishScript())


async def test_unordered_answers_are_found_by_exact_text_pattern_part_and_predicate(node: Node) -> None:
    answers = (
        ScriptedAnswer(text="exact", match=Match.EXACT, pattern="hello there"),
        ScriptedAnswer(text="regex", match=Match.REGEX, pattern=r"^\d+\n.*end$"),
        ScriptedAnswer(text="part", match=Match.CONTAINS, pattern="system: be brief\nuser: weather", part=Part.ALL),
        ScriptedAnswer(text="predicate", match=Match.PREDICATE, pattern="short"),
    )
    model = await node.spawn(Judging, ScriptedConfig(answers=answers, ordered=False), name="model")
    asked = ("weather today", "abc", "12\nlines end", "hello there")
    assert [(await model.ask(said(text))).text for text in asked] == ["part", "predicate", "regex", "exact"]
    await model.ask(FinishScript())


async def test_each_session_plays_the_script_by_itself(node: Node) -> None:
    script = ScriptedConfig(answers=(ScriptedAnswer(text="one"), ScriptedAnswer(text="two")), each_session=True)
    model = await node.spawn(Scripted, script, name="model")
    assert (await model.ask(said("x", "a"))).text == "one"
    assert (await model.ask(said("x", "b"))).text == "one"
    assert (await model.ask(said("x", "a"))).text == "two"
    with pytest.raises(UnusedAnswers):
        await model.ask(FinishScript())
    assert (await model.ask(said("x", "b"))).text == "two"
    await model.ask(FinishScript())


async def test_an_answer_may_be_for_one_session_only(node: Node) -> None:
    answers = (ScriptedAnswer(text="for a", session="a"), ScriptedAnswer(text="for b", session="b"))
    model = await node.spawn(Scripted, ScriptedConfig(answers=answers, ordered=False), name="model")
    assert (await model.ask(said("x", "b"))).text == "for b"
    assert (await model.ask(said("x", "a"))).text == "for a"


async def test_an_answer_waits_for_its_event_and_a_stream_for_its_own(node: Node) -> None:
    answer = ScriptedAnswer(pieces=("to ", "be"), after="go", hold="more")
    model = await node.spawn(Scripted, ScriptedConfig(answers=(answer,)), name="model")
    pieces: list[str] = []
    first = anyio.Event()

    async def read() -> None:
        async with model.stream(said("x")) as tokens:
            async for token in tokens:
                assert isinstance(token, Token)
                pieces.append(token.text)
                first.set()
            assert tokens.result.text == "to be"

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        state = await model.ask(AwaitCalls(1))
        assert (state.waiting, pieces) == (1, [])
        await model.ask(ReleaseScript("go"))
        await first.wait()
        assert pieces == ["to "]
        await model.ask(ReleaseScript("more"))
    assert pieces == ["to ", "be"]


async def test_a_caller_that_goes_away_is_noted_as_cancelled(node: Node) -> None:
    script = ScriptedConfig(answers=(ScriptedAnswer(text="never", after="never"),))
    model = await node.spawn(Scripted, script, name="model")
    async with anyio.create_task_group() as group:
        group.start_soon(model.ask, said("x"))
        await model.ask(AwaitCalls(1))
        group.cancel_scope.cancel()
    with anyio.fail_after(10):
        while (await model.ask(GetScriptedCalls())).calls[0].outcome is not CallOutcome.CANCELLED:
            await anyio.lowlevel.checkpoint()


async def test_stop_strings_and_length_end_an_answer_as_a_server_ends_it(node: Node) -> None:
    answers = (ScriptedAnswer(text="Thought: a\nObservation: b"), ScriptedAnswer(text="abcdefghij"))
    model = await node.spawn(Scripted, ScriptedConfig(answers=answers, piece_characters=3), name="model")
    async with model.stream(said("x", stop=("\nObservation:",))) as tokens:
        streamed = "".join([token.text async for token in tokens if isinstance(token, Token)])
    assert streamed == tokens.result.text == "Thought: a"
    cut = await model.ask(said("x", max_tokens=2))
    assert (cut.text, cut.finish_reason, cut.usage.completion_tokens) == ("abcdefgh", FinishReason.LENGTH, 2)


async def test_an_answer_may_be_an_error_or_tool_calls(node: Node) -> None:
    call = ModelToolCall("c1", "calculator", '{"expression": "2+2"}')
    answers = (ScriptedAnswer(error="model", text="the model is ill"), ScriptedAnswer(tool_calls=(call,)))
    model = await node.spawn(Scripted, ScriptedConfig(answers=answers), name="model")
    with pytest.raises(ModelError, match="the model is ill"):
        await model.ask(said("x"))
    completion = await model.ask(said("x"))
    assert completion.tool_calls == completion.choices[0].tool_calls == (call,)


async def test_more_of_the_script_may_come_later(node: Node) -> None:
    model = await node.spawn(Scripted, name="model")
    await model.ask(FinishScript())
    assert (await model.ask(ExtendScript((ScriptedAnswer(text="later"),)))).unused == (0,)
    assert (await model.ask(said("x"))).text == "later"


@pytest.mark.parametrize(
    "answer",
    [
        ScriptedAnswer(match=Match.REGEX, pattern="("),
        ScriptedAnswer(match=Match.PREDICATE, pattern="os:system"),
        ScriptedAnswer(match=Match.PREDICATE, pattern="unknown"),
    ],
)
async def test_a_pattern_that_is_none_fails_the_start(node: Node, answer: ScriptedAnswer) -> None:
    with pytest.raises(ConfigError):
        await node.spawn(Scripted, ScriptedConfig(answers=(answer,)), name="model")


async def test_a_predicate_of_an_allowed_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judges.py").write_text("def polite(request):\n    return 'please' in request.messages[-1].content\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    answer = ScriptedAnswer(text="gladly", match=Match.PREDICATE, pattern="judges:polite")
    async with Node(allow=("judges",)) as node:
        model = await node.spawn(Scripted, ScriptedConfig(answers=(answer,)), name="model")
        with pytest.raises(UnexpectedCall):
            await model.ask(said("now"))
        assert (await model.ask(said("please"))).text == "gladly"
    sys.modules.pop("judges")


async def test_what_one_answer_cannot_serve_is_refused(node: Node) -> None:
    config = ScriptedConfig(answers=(ScriptedAnswer(text="one"),), model="m")
    model = await node.spawn(Scripted, config, name="model")
    with pytest.raises(RequestInvalid, match="one answer"):
        await model.ask(said("x", n=2))
    with pytest.raises(RequestInvalid, match="'m'"):
        await model.ask(said("x", model="other"))
    assert (await model.ask(said("x", model="m"))).text == "one"
