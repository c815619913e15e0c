"""Structured output: whatever a random model says under a grammar is what the grammar describes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from callboard.actors.models.loading import load_model, load_tokenizer
from callboard.actors.models.served import ModelOptions, ServedModel
from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.serve.errors import GrammarFailed
from callboard.actors.serve.grammar import GrammarCompiler, check_grammar, grammar_compiler
from callboard.actors.serve.runner import Runner
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import Grammar, GrammarKind
from callboard.schemas.serve_steps import Sampling, SequenceStart

Drive = Callable[..., Any]
EOS = 1

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None]}, "maxItems": 3},
        "inner": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/point"}]},
    },
    "required": ["name", "age", "inner"],
    "$defs": {"point": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]}},
}
CHOICES = ["yes", "no", 'ja, "gewiß"', "ye\\s\n"]
EBNF = 'root ::= "sum" ("+" digit){1,4} "=" digit+\ndigit ::= [0-9]'
GRAMMARS = {
    "schema": Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA)),
    "json": Grammar(GrammarKind.JSON),
    "regex": Grammar(GrammarKind.REGEX, r"(\d{3}-[a-f]{2,4}|x+)"),
    "choice": Grammar(GrammarKind.CHOICE, json.dumps(CHOICES)),
    "ebnf": Grammar(GrammarKind.EBNF, EBNF),
}


def satisfies(name: str, text: str) -> bool:
    if name == "schema":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    if name == "json":
        json.loads(text)
        return True
    if name == "choice":
        return text in CHOICES
    pattern = r"(\d{3}-[a-f]{2,4}|x+)" if name == "regex" else r"sum(\+[0-9]){1,4}=[0-9]+"
    return re.fullmatch(pattern, text) is not None


@pytest.fixture(scope="module")
def tokenizer(tiny_path: Path) -> Tokenizer:
    return load_tokenizer(tiny_path)


@pytest.fixture(scope="module")
def model(tiny_path: Path) -> ServedModel:
    return load_model(tiny_path, ModelOptions())


@pytest.fixture
def runner(model: ServedModel, tokenizer: Tokenizer) -> Runner:
    return Runner(model, 512, 4, lambda: grammar_compiler(tokenizer, model.vocab_size))


def start(tokenizer: Tokenizer, grammar: Grammar, **sampling: Any) -> SequenceStart:
    prompt = tuple(tokenizer.encode("tell me: "))
    return SequenceStart(
        token_ids=prompt, num_prompt_tokens=len(prompt), sampling=Sampling(grammar=grammar, **sampling)
    )


@pytest.mark.parametrize("stop_ids", [(EOS,), ()])
@pytest.mark.parametrize("name", GRAMMARS)
def test_random_answers_satisfy_their_grammar(
    name: str, stop_ids: tuple[int, ...], runner: Runner, tokenizer: Tokenizer, drive: Drive
) -> None:
    starts = [
        start(tokenizer, GRAMMARS[name], temperature=1.0 + seed % 3, seed=seed, stop_ids=stop_ids, top_k=seed % 2 * 30)
        for seed in range(12)
    ]
    answers = drive(runner).run(starts, 120)
    num_complete = 0
    for answer in answers:
        text = tokenizer.decode(answer.tokens)
        assert answer.failed is None
        if answer.ended:
            assert satisfies(name, text)
            num_complete += 1
        elif len(answer.tokens) < 120:
            pytest.fail("it stopped before the grammar did")
        assert EOS not in answer.tokens[:-1]
    # What may go on for ever does so where stop tokens are ignored, and random strings are long.
    assert num_complete > 0 or (name in ("ebnf", "json") and not stop_ids)


def test_an_answer_taken_up_again_goes_on_as_it_would_have(runner: Runner, tokenizer: Tokenizer, drive: Drive) -> None:
    starts = [
        start(tokenizer, grammar, temperature=1.5, seed=seed, stop_ids=(EOS,))
        for seed in range(3)
        for grammar in GRAMMARS.values()
    ]
    whole = drive(runner).run(starts, 40)
    interrupted = drive(runner, preempt_every=3).run(starts, 40)
    assert [answer.tokens for answer in interrupted] == [answer.tokens for answer in whole]
    assert [answer.ended for answer in interrupted] == [answer.ended for answer in whole]


def test_the_end_is_told_with_the_last_token_where_nothing_else_may_follow(
    runner: Runner, tokenizer: Tokenizer, drive: Drive
) -> None:
    grammar = Grammar(GrammarKind.REGEX, "[0-9]{3}")
    for stop_ids in ((), (EOS,)):
        (answer,) = drive(runner).run([start(tokenizer, grammar, stop_ids=stop_ids)], 20)
        assert answer.ended
        assert len(answer.tokens) == 3


def test_a_grammar_that_may_go_on_does_so_where_stop_tokens_are_ignored(
    runner: Runner, tokenizer: Tokenizer, drive: Drive
) -> None:
    grammar = Grammar(GrammarKind.REGEX, "[0-9]+")
    bias = ((EOS, 100.0),)
    stops, ignores, waits = drive(runner).run(
        [
            start(tokenizer, grammar, stop_ids=(EOS,), logit_bias=bias),
            start(tokenizer, grammar, logit_bias=bias),
            start(tokenizer, grammar, stop_ids=(EOS,), logit_bias=bias, min_tokens=5),
        ],
        12,
    )
    assert stops.ended
    assert len(stops.tokens) == 2
    assert tokenizer.decode(ignores.tokens).isdigit()
    assert len(ignores.tokens) == 12
    assert len(waits.tokens) == 6


def test_a_step_sent_ahead_of_the_end_draws_nothing(runner: Runner, tokenizer: Tokenizer) -> None:
    from callboard.schemas.serve_steps import Step, StepSequence

    one = start(tokenizer, Grammar(GrammarKind.REGEX, "[ab]"))
    length = len(one.token_ids)
    first = runner.execute(Step(1, (StepSequence(1, 0, length, (0, 1, 2, 3), True, start=one),)))
    ahead = runner.execute(Step(2, (StepSequence(1, length, 1, (), True),)))
    assert first.drawn[0].ended
    assert len(first.drawn[0].tokens) == 1
    assert ahead.drawn[0].ended
    assert ahead.drawn[0].tokens == ()
    assert ahead.failed == ()


def test_logits_wider_than_the_tokenizer_are_masked(tokenizer: Tokenizer) -> None:
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size + 100)
    mask = compiler.start(Grammar(GrammarKind.REGEX, ".+"), ()).mask()
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert len(bits) >= tokenizer.vocab_size + 100
    assert bits[: tokenizer.vocab_size].any()
    assert not bits[tokenizer.vocab_size :].any()


def test_guesses_go_past_allowed_tokens_only_and_can_be_taken_back(tokenizer: Tokenizer) -> None:
    state = grammar_compiler(tokenizer).start(Grammar(GrammarKind.REGEX, "ab[cd]"), (EOS,))
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    before = state.mask().copy()
    assert not state.guess(b)
    assert state.guess(a)
    assert state.guess(b)
    assert not state.guess(c)  # nothing could be drawn after it
    state.rollback(2)
    assert np.array_equal(state.mask(), before)
    with pytest.raises(GrammarFailed):
        state.accept(b)
    for token in (a, b, c):
        state.accept(token)
    assert state.ended


def test_a_grammar_that_becomes_slow_fails_its_answer_alone(
    runner: Runner, tokenizer: Tokenizer, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10**9))
    slow = start(tokenizer, Grammar(GrammarKind.REGEX, "[a-f]{5,90}"), stop_ids=(EOS,))
    usual = SequenceStart(token_ids=slow.token_ids, num_prompt_tokens=slow.num_prompt_tokens)
    check_grammar(slow.sampling.grammar, tokenizer)  # type: ignore[arg-type]
    monkeypatch.setattr("time.thread_time", lambda: 0.1 * next(clock))
    failing, other = drive(runner).run([slow, usual], 30)
    assert failing.failed.code == "serve.grammar"
    assert "too long" in failing.failed.message
    assert 0 < len(failing.tokens) < 30
    assert len(other.tokens) == 30


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_that_can_draw_nothing_its_grammar_allows_fails_alone(
    temperature: float, runner: Runner, tokenizer: Tokenizer, drive: Drive
) -> None:
    bias = tuple((tokenizer.encode(letter)[0], float("-inf")) for letter in "ab")
    grammar = Grammar(GrammarKind.REGEX, "[ab]+")
    dead = start(tokenizer, grammar, logit_bias=bias, temperature=temperature, stop_ids=(EOS,))
    alive = start(tokenizer, grammar, temperature=temperature, stop_ids=(EOS,))
    failing, other = drive(runner).run([dead, alive], 5)
    assert failing.failed.code == "serve.nothing_to_draw"
    assert other.failed is None
    assert len(other.tokens) > 0


def test_a_grammar_that_is_slow_from_the_beginning_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes 100 ms a token by the clock takes longer than is tried out."""
    clock = iter(range(10**9))
    monkeypatch.setattr("time.thread_time", lambda: 0.1 * next(clock))
    with pytest.raises(RequestInvalid, match="too long to follow"):
        check_grammar(Grammar(GrammarKind.REGEX, "[a-f]{5,91}"), tokenizer)


BAD = {
    "regex syntax": Grammar(GrammarKind.REGEX, "(a"),
    "anchor inside": Grammar(GrammarKind.REGEX, "a$b"),
    "lookahead": Grammar(GrammarKind.REGEX, "(?=a)b"),
    "no JSON": Grammar(GrammarKind.JSON_SCHEMA, "{"),
    "no type": Grammar(GrammarKind.JSON_SCHEMA, '{"type": "nonsense"}'),
    "false": Grammar(GrammarKind.JSON_SCHEMA, "false"),
    "empty range": Grammar(GrammarKind.JSON_SCHEMA, '{"type": "integer", "minimum": 5, "maximum": 3}'),
    "endless": Grammar(GrammarKind.JSON_SCHEMA, '{"$ref": "#"}'),
    "endless list": Grammar(
        GrammarKind.JSON_SCHEMA, '{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}'
    ),
    "endless rule": Grammar(GrammarKind.EBNF, 'root ::= "a" more\nmore ::= "b" root | [c-d]+ more'),
    "no choice": Grammar(GrammarKind.CHOICE, "[]"),
    "no list": Grammar(GrammarKind.CHOICE, '"a"'),
    "no strings": Grammar(GrammarKind.CHOICE, "[1]"),
    "empty choice": Grammar(GrammarKind.CHOICE, '[""]'),
    "undefined rule": Grammar(GrammarKind.EBNF, "root ::= a"),
    "no root": Grammar(GrammarKind.EBNF, 'a ::= "a"'),
    "left recursion": Grammar(GrammarKind.EBNF, 'root ::= root "a"'),
    "too long": Grammar(GrammarKind.EBNF, 'root ::= "' + "a" * 70_000 + '"'),
    "half a character": Grammar(GrammarKind.CHOICE, '["\\ud800"]'),
}


@pytest.mark.parametrize("name", BAD)
def test_a_grammar_that_cannot_be_is_refused_with_the_reason(name: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestInvalid) as caught:
        check_grammar(BAD[name], tokenizer)
    assert "/project" not in str(caught.value)
    assert "grammar" in str(caught.value)


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_grammar_that_can_be_is_let_through(name: str, tokenizer: Tokenizer) -> None:
    check_grammar(GRAMMARS[name], tokenizer)
