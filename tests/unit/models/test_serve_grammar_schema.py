"""JSON Schema: what is taken is kept to, whatever is said; what could not be kept to is refused."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest

from callboard.actors.serve.grammar import GrammarCompiler
from callboard.actors.serve.grammar_words import has_words
from callboard.runtime.errors import RequestInvalid
from callboard.schemas.serve import Grammar, GrammarKind

STOP = 0x00  # no JSON holds this byte


class Bytes:
    """A tokenizer whose tokens are the bytes of ASCII: xgrammar lets other bytes through that are no UTF-8."""

    vocab_size = 128

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token != STOP else b""


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(Bytes())  # type: ignore[arg-type]


def anything(compiler: GrammarCompiler, grammar: Grammar, seed: int) -> str | None:
    """A random text that the grammar allows to end; None if it did not end soon."""
    chance = random.Random(seed)
    state = compiler.start(grammar, (STOP,))
    text = ""
    for _ in range(300):
        if state.ended:
            return text
        allowed = np.unpackbits(state.mask().view(np.uint8), bitorder="little").nonzero()[0].tolist()
        if STOP in allowed and chance.random() < 0.4:
            return text
        others = [token for token in allowed if token != STOP]
        closing = [token for token in others if chr(token) in '"}]']
        token = chance.choice(closing if closing and chance.random() < 0.4 else others)
        state.accept(token)
        text += chr(token)
    return None


TAKEN: list[object] = [
    True,
    {},
    {"type": "object"},
    {"properties": {"a": {"type": "integer"}}},
    {"type": ["integer", "null"], "minimum": 5},
    {"type": "integer", "minimum": -5, "maximum": 17},
    {"type": "integer", "multipleOf": 3},
    {"type": "number", "exclusiveMinimum": 0.5},
    {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": kind}, "v": value}, "required": ["k", "v"]}
            for kind, value in (("a", {"type": "integer"}), ("b", {"type": "boolean"}))
        ]
    },
    {"anyOf": [{"type": "boolean"}, {"items": {"type": "number"}, "maxItems": 2}], "description": "either"},
    {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "maxItems": 3, "minItems": 2},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "integer"}}, "additionalProperties": False},
    {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": {"type": "null"}, "maxProperties": 2},
    {"type": "object", "additionalProperties": {"type": "integer"}, "properties": {'a "b': {"type": "null"}}},
    {"type": "string", "pattern": r"^[a-c]{2,3}.\S[^x\s]\d$"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "format": "uuid"},
    {"const": 'a"\n\u0001é'.encode().decode("ascii", "ignore")},
    {"enum": [1, "a", None, {"b": [True]}]},
    {"type": "string", "enum": ["a", "b"]},
    {"allOf": [{"type": "integer"}]},
    {
        "$ref": "#/$defs/t",
        "$defs": {
            "t": {
                "type": "object",
                "properties": {"l": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/t"}]}},
                "required": ["l"],
            }
        },
    },
]


@pytest.mark.parametrize("schema", TAKEN, ids=lambda schema: json.dumps(schema)[:40])
def test_whatever_is_said_satisfies_the_schema(schema: object, compiler: GrammarCompiler) -> None:
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    texts = [text for seed in range(60) if (text := anything(compiler, grammar, seed)) is not None]
    assert len(texts) > 30
    for text in texts:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))  # type: ignore[arg-type]


REFUSED: list[tuple[object, str]] = [
    ({"not": {"type": "string"}}, "'not'"),
    ({"if": {"type": "string"}, "then": {"maxLength": 2}}, "'if'"),
    ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, "'uniqueItems'"),
    ({"type": "array", "contains": {"type": "string"}}, "'contains'"),
    ({"type": "object", "properties": {"a": {"not": {}}}}, "'not'"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "overlap"),
    ({"allOf": [{"type": "integer"}, {"minimum": 2}]}, "several"),
    ({"type": "object", "properties": {}, "anyOf": [{"required": ["b"]}]}, "beside 'anyOf'"),
    ({"$ref": "#/$defs/x", "$defs": {"x": {"type": "integer"}}, "maximum": 3}, "beside '\\$ref'"),
    ({"type": "object", "required": ["z"]}, "'z' is required"),
    ({"type": "string", "enum": ["a", 1]}, "not of the type"),
    ({"type": "string", "pattern": "a+", "maxLength": 2}, "pattern"),
    ({"type": "string", "pattern": '"'}, "escapes"),
    ({"type": "string", "pattern": "[ -~]"}, "escapes"),
    ({"type": "number", "multipleOf": 0.5}, "multipleOf"),
    ({"minimum": 5, "maxLength": 3}, "needs a 'type'"),
    ({"type": "object", "additionalProperties": True, "minProperties": 2}, "minProperties"),
    ({"properties": []}, "not what it must be"),
    ({"required": [["a"]]}, "'required' is not what it must be"),
    ({"oneOf": [{"required": [[]], "properties": {}}, {"const": 1}]}, "'required' is not what it must be"),
    ({"type": None}, "'type' is not what it must be"),
    ({"type": [["string"]], "minLength": 1}, "'type' is not what it must be"),
    ({"type": {"a": "string"}}, "'type' is not what it must be"),
    ([1], "a schema is"),
]


@pytest.mark.parametrize(("schema", "reason"), REFUSED, ids=lambda value: json.dumps(value)[:40])
def test_what_could_not_be_kept_to_is_refused(schema: object, reason: str, compiler: GrammarCompiler) -> None:
    with pytest.raises(RequestInvalid, match=reason):
        compiler.compile(Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema)))


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        ('root ::= (("a"))', True),
        ('root ::= (("a" root))', False),
        ('root ::= (("a" root) | ("b"))', True),
        ("root ::= ((one two))\none ::= ((two))\ntwo ::= ((one) | ([^\\]]{3, 5} one))", False),
        ("root ::= ((one{0, 2}))\none ::= ((one))", True),
        ("root ::= ((one{1, 2}))\none ::= ((one))", False),
        ('root ::= (("x" one*))\none ::= ((one))', True),
        ('root ::= ((one "x"*))\none ::= ((one))', False),
        ('root ::= (("x")) (=(one))\none ::= ((one))', True),
        ('root ::= ((Regex("a", json_string=true)))', True),  # not known here
    ],
)
def test_a_grammar_without_finite_texts_is_found(grammar: str, expected: bool) -> None:
    assert has_words(grammar) is expected
