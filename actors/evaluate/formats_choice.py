"""Formats of questions with choices. Prompts are those in which the figures of these benchmarks are usually given."""

from __future__ import annotations

import re

from ..data.errors import Unfit
from .fields import Value, as_texts, letters, place, place_of, text, texts
from .format import Format
from .question import Kind, Question

_BLANK = "_"
# What WikiHow's pages leave in HellaSwag's texts.
_TITLE = " [title]"
_IN_BRACKETS = re.compile(r"\[.*?\]")


def _question(asked: str, choices: tuple[str, ...], right: int) -> Question:
    return Question(prompt=f"Question: {asked.strip()}\nAnswer:", choices=choices, right=right, example=choices[right])


def _mmlu(value: Value) -> Question:
    """All choices in the prompt, and a letter is the answer. `subject` is told first where it is known."""
    choices = texts(value, "choices")
    names = letters(len(choices))
    right = _right(value, choices, "answer")
    listed = "\n".join(f"{name}. {choice.strip()}" for name, choice in zip(names, choices, strict=True))
    subject = value.get("subject")
    about = f" about {subject.replace('_', ' ')}" if isinstance(subject, str) and subject else ""
    return Question(
        prompt=f"{text(value, 'question').strip()}\n{listed}\nAnswer:",
        intro=f"The following are multiple choice questions (with answers){about}.\n\n" if about else "",
        choices=names,
        right=right,
        example=names[right],
    )


def _arc(value: Value) -> Question:
    question = value.get("question")
    if isinstance(question, dict):
        options = question.get("choices")
        if not isinstance(options, list) or not all(isinstance(one, dict) for one in options):
            raise Unfit("'question.choices' is no list of objects")
        asked, found = text(question, "stem"), [one.get("text") for one in options]
        labels = [one.get("label") for one in options]
    else:
        options = value.get("choices")
        if not isinstance(options, dict):
            raise Unfit("'choices' is no object with 'text' and 'label'")
        asked, found, labels = text(value, "question"), options.get("text"), options.get("label")
    choices = as_texts(found, "choices.text")
    names = as_texts(labels, "choices.label")
    if len(names) != len(choices):
        raise Unfit(f"there are {len(choices)} choices and {len(names)} labels")
    return _question(asked, choices, place_of(value.get("answerKey"), "answerKey", names))


def _hellaswag(value: Value) -> Question:
    if isinstance(value.get("ctx_a"), str):
        after = value.get("ctx_b")
        begun = f"{value['ctx_a']} {after.capitalize()}" if isinstance(after, str) and after else value["ctx_a"]
    else:
        begun = text(value, "ctx")
    about = value.get("activity_label")
    prompt = _cleaned(f"{about}: {begun}" if isinstance(about, str) and about else begun)
    endings = tuple(_cleaned(ending) for ending in texts(value, "endings"))
    if not (prompt and all(endings)):
        raise Unfit("nothing is left of its text without what stands in brackets")
    right = place(value.get("label"), "label", len(endings))
    return Question(prompt=prompt, choices=endings, right=right, example=endings[right])


def _cleaned(found: str) -> str:
    found = _IN_BRACKETS.sub("", found.strip().replace(_TITLE, ". "))
    return re.sub(r" {2,}", " ", found).strip()


def _piqa(value: Value) -> Question:
    choices = text(value, "sol1"), text(value, "sol2")
    return _question(text(value, "goal"), choices, place(value.get("label"), "label", 2))


def _winogrande(value: Value) -> Question:
    """What follows the blank is scored, once after each option."""
    sentence = text(value, "sentence")
    if sentence.count(_BLANK) != 1:
        raise Unfit(f"'sentence' has {sentence.count(_BLANK)} blanks ('{_BLANK}'), and should have one")
    before, _, after = sentence.partition(_BLANK)
    if not after.strip():
        raise Unfit("nothing follows the blank, so there is nothing to score")
    choices = text(value, "option1").strip(), text(value, "option2").strip()
    return Question(
        prompt=sentence,
        choices=choices,
        right=place(value.get("answer"), "answer", 2, first=1),
        contexts=tuple(before + choice for choice in choices),
        ending=after.rstrip(),
    )


def _choices(value: Value) -> Question:
    choices = texts(value, "choices")
    return _question(text(value, "question"), choices, _right(value, choices, "answer"))


def _right(value: Value, choices: tuple[str, ...], name: str) -> int:
    """By the text of a choice, by its letter, or by its number from 0."""
    found = value.get(name)
    if isinstance(found, str):
        if found in choices:
            return choices.index(found)
        if not found.strip().isdecimal():
            return place_of(found.strip().upper(), name, letters(len(choices)))
    return place(found, name, len(choices))


CHOICE_FORMATS = (
    Format("hellaswag", Kind.CHOICE, lambda one: "endings" in one and ("ctx" in one or "ctx_a" in one), _hellaswag),
    Format("piqa", Kind.CHOICE, lambda one: {"goal", "sol1", "sol2"} <= one.keys(), _piqa),
    Format(
        "winogrande",
        Kind.CHOICE,
        lambda one: {"sentence", "option1", "option2"} <= one.keys(),
        _winogrande,
        by_length=False,
        in_chat=False,
    ),
    Format(
        "arc",
        Kind.CHOICE,
        lambda one: (
            isinstance(one.get("question"), dict)
            or ("question" in one and (isinstance(one.get("choices"), dict) or "answerKey" in one))
        ),
        _arc,
    ),
    Format(
        "mmlu",
        Kind.CHOICE,
        lambda one: {"question", "choices", "subject"} <= one.keys(),
        _mmlu,
        by_length=False,
    ),
    Format("choices", Kind.CHOICE, lambda one: {"question", "choices"} <= one.keys(), _choices),
)
