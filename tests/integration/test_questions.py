"""The board of questions on a real bus: asking, answering, time, and what survives."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import anyio
import msgspec
import pytest
from own_server import OwnServer

from callboard.actors.questions.board import Board, BoardConfig
from callboard.actors.questions.errors import AnswerInvalid, BoardFull, NoSuchQuestion, QuestionInvalid, QuestionOver
from callboard.actors.questions.state import COMPACT_OVER
from callboard.runtime.bus import BusOptions
from callboard.runtime.errors import ActorStopped
from callboard.runtime.event_log import EventLog
from callboard.runtime.node import Node
from callboard.runtime.refs import Ref
from callboard.schemas.question import (
    Answered,
    AnswerQuestion,
    AskQuestion,
    CancelQuestion,
    ListQuestions,
    Outcome,
    Question,
    QuestionClosed,
    QuestionOpened,
)

pytestmark = pytest.mark.anyio

AGE = json.dumps({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0}}, "required": ["age"]})


async def open_question(board: Ref, asker: str = "") -> Question:
    """The first one that is open, when there is one."""
    with anyio.fail_after(10):
        while not (found := (await board.ask(ListQuestions(asker))).questions):
            await anyio.sleep(0.01)
    return found[0]


def asking(board: Ref, message: AskQuestion) -> asyncio.Task[Answered]:
    return asyncio.ensure_future(board.ask(message, math.inf))


async def test_whoever_asks_gets_the_answer_of_any_client_and_topics_tell_when(node: Node, server: OwnServer) -> None:
    board = await node.spawn(Board, name="questions")
    async with (
        Node(bus=BusOptions(server.url)) as other,
        other.listen("topic.questions.*", QuestionOpened, QuestionClosed) as news,
    ):
        task = asking(board, AskQuestion("How old?", "agents.one", "elicitation", AGE, ttl=60))
        _, opened = await anext(news)
        assert isinstance(opened, QuestionOpened)
        assert (opened.text, opened.asker, opened.kind) == ("How old?", "agents.one", "elicitation")
        there = other.actor("questions")
        question = (await there.ask(ListQuestions())).questions[0]
        assert question.id == opened.id
        assert question.expires - question.asked == pytest.approx(60)
        await there.ask(AnswerQuestion(question.id, value='{"age": 41}', note="a guess", by="me"))
        answered = await task
        assert (answered.outcome, answered.value, answered.by) == (Outcome.ACCEPTED, '{"age": 41}', "me")
        _, closed = await anext(news)
        assert closed == QuestionClosed(question.id, Outcome.ACCEPTED, "agents.one", "me")
        assert (await there.ask(ListQuestions())).questions == ()
        one = await there.ask(ListQuestions(id=question.id))
        assert one.answers == (answered,)


async def test_a_wrong_answer_names_the_place_and_leaves_the_question_open(node: Node) -> None:
    board = await node.spawn(Board, name="questions")
    task = asking(board, AskQuestion("How old?", "a", schema=AGE))
    question = await open_question(board)
    for value, words in [('{"age": -1}', r"\$\.age"), ("{}", "age"), ("{", "not JSON"), ("", "has a value")]:
        with pytest.raises(AnswerInvalid, match=words):
            await board.ask(AnswerQuestion(question.id, value=value))
    with pytest.raises(AnswerInvalid, match="has no value"):
        await board.ask(AnswerQuestion(question.id, Outcome.REFUSED, '{"age": 1}'))
    with pytest.raises(AnswerInvalid, match="by itself"):
        await board.ask(AnswerQuestion(question.id, Outcome.EXPIRED))
    assert not task.done()
    await board.ask(AnswerQuestion(question.id, Outcome.REFUSED, note="none of your business"))
    assert (await task).note == "none of your business"


async def test_a_proposal_is_accepted_as_it_is_or_edited(node: Node) -> None:
    board = await node.spawn(Board, name="questions")
    for value, expected in [("", '{"age": 7}'), ('{"age": 8}', '{"age": 8}')]:
        task = asking(board, AskQuestion("This?", "a", "approval", AGE, proposal='{"age": 7}'))
        await board.ask(AnswerQuestion((await open_question(board)).id, value=value))
        assert (await task).value == expected


async def test_one_question_ends_once(node: Node) -> None:
    board = await node.spawn(Board, name="questions")
    task = asking(board, AskQuestion("?", "a"))
    question = await open_question(board)
    answers = await asyncio.gather(
        *(board.ask(AnswerQuestion(question.id, value=str(number))) for number in range(8)), return_exceptions=True
    )
    won = [one for one in answers if isinstance(one, Answered)]
    assert len(won) == 1
    assert sum(isinstance(one, QuestionOver) for one in answers) == 7
    assert await task == won[0]
    assert await board.ask(AnswerQuestion(question.id, value=won[0].value)) == won[0]  # the same again is no error
    with pytest.raises(QuestionOver):
        await board.ask(CancelQuestion(question.id))


async def test_the_same_key_is_the_same_question_for_as_long_as_it_is_remembered(node: Node) -> None:
    board = await node.spawn(Board, name="questions")
    message = AskQuestion("May I?", "agents.one", key="step-4")
    first, second = asking(board, message), asking(board, message)
    question = await open_question(board)
    first.cancel()  # it leaves the question where it is
    assert len((await board.ask(ListQuestions())).questions) == 1
    await board.ask(AnswerQuestion(question.id, value="true"))
    assert (await second).value == "true"
    assert (await board.ask(message)).value == "true"
    other = asking(board, msgspec.structs.replace(message, asker="agents.two"))
    assert (await open_question(board)).asker == "agents.two"
    other.cancel()


async def test_a_question_expires_and_can_be_taken_back(node: Node) -> None:
    board = await node.spawn(Board, name="questions")
    answered = await board.ask(AskQuestion("Quick!", "a", ttl=0.05))
    assert answered.outcome is Outcome.EXPIRED
    task = asking(board, AskQuestion("Slow", "a"))
    question = await open_question(board)
    await board.ask(CancelQuestion(question.id, "it is over"))
    assert (await task).outcome is Outcome.CANCELLED
    with pytest.raises(NoSuchQuestion):
        await board.ask(CancelQuestion("none"))
    with pytest.raises(NoSuchQuestion):
        await board.ask(ListQuestions(id="none"))


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("{", "not JSON"),
        ('{"$ref": "http://127.0.0.1:1/schema.json"}', "never fetched"),
        ('{"type": "nothing"}', "no JSON Schema"),
        ('{"not": ' * 200 + "{}" + "}" * 200, "nested"),
        (json.dumps({"description": "x" * 70_000}), "over"),
    ],
)
async def test_what_nobody_could_answer_is_not_asked(node: Node, schema: str, words: str) -> None:
    board = await node.spawn(Board, name="questions")
    with pytest.raises(QuestionInvalid, match=words):
        await board.ask(AskQuestion("?", "a", schema=schema))
    with pytest.raises(QuestionInvalid, match="proposal"):
        await board.ask(AskQuestion("?", "a", schema=AGE, proposal='{"age": "old"}'))
    assert (await board.ask(ListQuestions(closed=True))).questions == ()


async def test_a_full_board_says_so(node: Node) -> None:
    board = await node.spawn(Board, BoardConfig(max_open=2), name="questions")
    tasks = [asking(board, AskQuestion(str(number), "a")) for number in range(2)]
    with anyio.fail_after(10):
        while len((await board.ask(ListQuestions())).questions) < 2:
            await anyio.sleep(0.01)
    with pytest.raises(BoardFull):
        await board.ask(AskQuestion("one more", "a"))
    for task in tasks:
        task.cancel()


async def test_questions_and_answers_outlive_the_board_and_the_asker(server: OwnServer) -> None:
    message = AskQuestion("Next week?", "agents.one", key="run-1", schema=AGE)
    async with Node(bus=BusOptions(server.url)) as node:
        board = await node.spawn(Board, name="questions")
        task = asking(board, message)
        question = await open_question(board)
    with pytest.raises(ActorStopped):
        await task
    async with Node(bus=BusOptions(server.url)) as node:
        board = await node.spawn(Board, name="questions")
        assert await open_question(board) == question
        await board.ask(AnswerQuestion(question.id, value='{"age": 3}'))
    async with Node(bus=BusOptions(server.url)) as node:
        board = await node.spawn(Board, name="questions")
        assert (await board.ask(message)).value == '{"age": 3}'


async def test_the_log_is_made_shorter_and_says_the_same(server: OwnServer) -> None:
    async with Node(bus=BusOptions(server.url)) as node:
        board = await node.spawn(Board, BoardConfig(remember_s=0.0), name="questions")
        kept = asking(board, AskQuestion("kept", "b", key="k"))
        question = await open_question(board, "b")
        for number in range(COMPACT_OVER // 2 + 10):
            task = asking(board, AskQuestion(str(number), "a"))
            await board.ask(AnswerQuestion((await open_question(board, "a")).id, value="1"))
            await task
        log = await EventLog.open(node, "questions.questions", Any)
        assert len([event async for event in log.read()]) < COMPACT_OVER
        kept.cancel()
    async with Node(bus=BusOptions(server.url)) as node:
        board = await node.spawn(Board, BoardConfig(remember_s=0.0), name="questions")
        assert (await board.ask(ListQuestions(closed=True))).questions == (question,)
