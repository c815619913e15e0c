"""Formats of prompts that a model goes on from, and of plain texts."""

from __future__ import annotations

from ..data.errors import Unfit
from .answers import last_number
from .fields import Value, text
from .format import Format
from .question import Kind, Question

# Before a model that has answered begins to ask itself.
_NEXT_QUESTION = "Question:"
_MARK = "####"
_PROMPTS = ("prompt", "question", "input")
_ANSWERS = ("answer", "answers", "target", "output", "outputs")


def _gsm8k(value: Value) -> Question:
    """The worked answer is what an example shows; its number is what is compared."""
    worked = text(value, "answer").strip()
    number = last_number(worked)
    if number is None:
        raise Unfit("'answer' has no number")
    return Question(prompt=f"Question: {text(value, 'question').strip()}\nAnswer:", answers=(number,), example=worked)


def _answer(value: Value) -> Question:
    name = _first(_PROMPTS, value)
    asked = text(value, name)
    if name == "question":
        context = value.get("context")
        before = f"{context.strip()}\n\n" if isinstance(context, str) and context.strip() else ""
        asked = f"{before}Question: {asked.strip()}\nAnswer:"
    answers = _answers(value)
    lead = "" if asked[-1:].isspace() else " "
    return Question(prompt=asked, lead=lead, answers=answers, example=answers[0])


def _answers(value: Value) -> tuple[str, ...]:
    name = _first(_ANSWERS, value)
    found = value[name]
    if isinstance(found, dict):  # as SQuAD has them
        found = found.get("text")
    if isinstance(found, str | int | float) and not isinstance(found, bool):
        found = [str(found)]
    if not isinstance(found, list) or not found:
        raise Unfit(f"'{name}' is neither a text nor a list of texts")
    if not all(isinstance(one, str) and one.strip() for one in found):
        raise Unfit(f"'{name}' has an answer that is no text, or an empty one")
    return tuple(dict.fromkeys(one.strip() for one in found))


def _first(names: tuple[str, ...], value: Value) -> str:
    for name in names:
        if name in value:
            return name
    raise Unfit(f"it has none of the fields {', '.join(names)}")


def _last_word(value: Value) -> Question:
    words = text(value, "text").strip()
    before, space, word = words.rpartition(" ")
    if not before.strip():
        raise Unfit("'text' has a single word, so nothing stands before its last")
    return Question(prompt=before.rstrip(), choices=(word,), lead=space, example=word)


def _text(value: Value) -> Question:
    return Question(prompt=text(value, "text"), lead="")


ANSWER_FORMATS = (
    Format(
        "gsm8k",
        Kind.ANSWER,
        lambda one: isinstance(one.get("question"), str) and _MARK in str(one.get("answer", "")),
        _gsm8k,
        number=True,
        stop=(_NEXT_QUESTION,),
        max_tokens=512,
    ),
    Format(
        "answers",
        Kind.ANSWER,
        lambda one: any(name in one for name in _PROMPTS) and any(name in one for name in _ANSWERS),
        _answer,
        stop=("\n",),
        max_tokens=64,
    ),
    # A text alone is read for its perplexity; that its last word is to be foreseen must be said.
    Format("perplexity", Kind.TEXT, lambda one: isinstance(one.get("text"), str), _text, in_chat=False),
    Format("last_word", Kind.LAST_WORD, lambda _: False, _last_word, in_chat=False),
)
