"""Grammars of turns: what fits them is read as a turn, and what does not fit a tool's schema does not fit them."""

from __future__ import annotations

import json

import pytest

from callboard.actors.agent.autogpt import FINISH, THOUGHTS, read_command
from callboard.actors.agent.plan import check_plan, read_plan
from callboard.actors.agent.react_text import read_turn
from callboard.actors.agent.rewoo import plan_grammar
from callboard.actors.agent.turn_grammar import command_grammar, react_grammar
from callboard.schemas.serve import Grammar
from callboard.schemas.tool import ToolInfo

xgrammar = pytest.importorskip("xgrammar")

SCHEMA = (
    '{"type":"object","properties":{"query":{"type":"string"},"n":{"type":"integer"},'
    '"how":{"enum":["fast","good"]},"more":{"type":"object"}},"required":["query"]}'
)
TOOLS = (ToolInfo("search", "s", SCHEMA, "{}"), ToolInfo("now", "n", '{"type":"object","properties":{}}', "{}"), FINISH)


def fits(grammar: Grammar, text: str) -> bool:
    """Whether the whole text is one that the grammar has."""
    vocabulary = [bytes([byte]) for byte in range(256)]
    info = xgrammar.TokenizerInfo(vocabulary, xgrammar.VocabType.RAW, vocab_size=256, stop_token_ids=[])
    compiled = xgrammar.GrammarCompiler(info, max_threads=1).compile_grammar(xgrammar.Grammar.from_ebnf(grammar.text))
    matcher = xgrammar.GrammarMatcher(compiled, override_stop_tokens=[0])
    return all(matcher.accept_token(byte) for byte in text.encode()) and matcher.accept_token(0)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('Thought: t\nAction: search\nAction Input: {"query":"a"}', True),
        ('Thought: t\nAction: search\nAction Input: { "query": "a \\" b", "n": -3, "how": "fast"}', True),
        ('Thought: t\nAction: search\nAction Input: {"query":"a","more":{"x":[1,{"y":null}]}}', True),
        ("Thought: t\nAction: now\nAction Input: {}", True),
        ("Thought: t\nFinal Answer: 42", True),
        ('Thought: t\nAction: search\nAction Input: {"n":1}', False),
        ('Thought: t\nAction: search\nAction Input: {"query":1}', False),
        ('Thought: t\nAction: search\nAction Input: {"query":"a","how":"badly"}', False),
        ("Thought: t\nAction: dig\nAction Input: {}", False),
        ("Action: now\nAction Input: {}", False),
    ],
)
def test_reacts_turn(text: str, good: bool) -> None:
    assert fits(react_grammar(TOOLS), text) is good
    if good:
        turn = read_turn(text)
        assert turn.answer is not None or json.loads(turn.input) is not None


@pytest.mark.parametrize(
    ("command", "good"),
    [
        ('{"name": "search", "args": {"query":"a"}}', True),
        ('{"name": "finish", "args": {"answer":"a"}}', True),
        ('{"name": "search", "args": {}}', False),
        ('{"name": "dig", "args": {}}', False),
    ],
)
def test_autogpts_turn(command: str, good: bool) -> None:
    thoughts = ", ".join(f'"{name}": "x"' for name in THOUGHTS)
    text = f'{{"thoughts": {{{thoughts}}}, "command": {command}}}'
    assert fits(command_grammar(TOOLS, THOUGHTS), text) is good
    if good:
        assert read_command(text).command.name in ("search", "finish")


def test_rewoos_plan() -> None:
    text = "Plan: a\n#E1 = search[x]\nPlan: b\n#E2 = LLM[about #E1]\n"
    assert fits(plan_grammar(("LLM", "search")), text)
    check_plan(read_plan(text), ["LLM", "search"])
    assert not fits(plan_grammar(("LLM",)), text)


def test_many_tools_still_make_a_grammar_that_an_engine_takes() -> None:
    tools = tuple(
        ToolInfo(
            f"tool{n}",
            "t",
            json.dumps({"type": "object", "properties": {f"p{k}": {"type": "string"} for k in range(40)}}),
            "{}",
        )
        for n in range(60)
    )
    assert len(react_grammar(tools).text.encode()) < 64 << 10
    assert fits(react_grammar(tools), 'Thought: t\nAction: tool59\nAction Input: {"any": 1}')
