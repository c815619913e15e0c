"""A plan of ReWOO: read from a model's text into steps that name each other's evidence, and checked. Pure.

    Plan: find out who wrote it
    #E1 = search[author of "Emma"]
    Plan: and when that person was born
    #E2 = search[birth year of #E1]

An input ends at the bracket that closes it, brackets and quotes within it counted. Where what a model wrote does not
come out even, it ends at the last bracket before the next step. `#E1` is no part of `#E12`. (arXiv:2305.18323)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from ...schemas.agent_log import PlanStep

_REFERENCE = re.compile(r"#[ ]?E(\d+)")
_HEAD = re.compile(r"(?<![\w#\[])#[ ]?E(\d+)[ \t]*[=:][ \t]*([A-Za-z_][\w.\-]*)[ \t]*\[")
_PLAN = re.compile(r"^[ \t>*#\-\d.]*Plan[ \t*]*\d*[ \t*]*:[ \t*]*", re.MULTILINE | re.IGNORECASE)
_OPEN, _CLOSE = "[({", "])}"
MAX_STEPS = 100


class BadPlan(Exception):
    """What is wrong with a plan; the words are for the model."""


def references(text: str) -> list[str]:
    """The evidence that an input names, each once, in order: `E1`, `E12`."""
    return list(dict.fromkeys(f"E{int(number)}" for number in _REFERENCE.findall(text)))


def fill_in(text: str, evidence: Mapping[str, str]) -> str:
    """The text with every reference replaced that there is evidence for."""
    return _REFERENCE.sub(lambda found: evidence.get(f"E{int(found[1])}", found[0]), text)


def read_plan(text: str) -> tuple[PlanStep, ...]:
    """The steps of a plan in the order in which they stand. Raises BadPlan where there are none."""
    steps: list[PlanStep] = []
    position = 0
    while (head := _HEAD.search(text, position)) is not None:
        following = _HEAD.search(text, head.end())
        end = _end_of_input(text, head.end(), following.start() if following else len(text))
        input_ = text[head.end() : end].strip()
        plan = _plan_before(text[position : head.start()])
        steps.append(PlanStep(f"E{int(head[1])}", plan, head[2], input_, tuple(references(input_))))
        position = end + 1
        if len(steps) > MAX_STEPS:
            raise BadPlan(f"a plan has {MAX_STEPS} steps at most")
    if not steps:
        raise BadPlan("there is no step in the plan: each is a line like `#E1 = tool[input]`")
    return tuple(steps)


def check_plan(steps: Sequence[PlanStep], tools: Iterable[str], known: Iterable[str] = ()) -> None:
    """Raises BadPlan for a step that is there twice, an unknown tool, evidence that nothing gives, a cycle.

    `known`: evidence that earlier plans gave.
    """
    names = [step.id for step in steps]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise BadPlan(f"{_listed(twice)} is there twice")
    there, tools = {*names, *known}, set(tools)
    for step in steps:
        if step.tool not in tools:
            raise BadPlan(f"#{step.id}: there is no tool '{step.tool}'; there are: {', '.join(sorted(tools))}")
        missing = set(step.needs) - there
        if missing:
            raise BadPlan(f"#{step.id} uses {_listed(missing)}, which no step gives")
    try:
        TopologicalSorter({step.id: step.needs for step in steps}).prepare()
    except CycleError as error:
        raise BadPlan(f"steps wait for each other: {' -> '.join('#' + name for name in error.args[1])}") from None


def after(steps: Sequence[PlanStep], lost: Iterable[str]) -> set[str]:
    """The steps that need what is lost, directly or by way of others; without the lost ones themselves."""
    gone, found = set(lost), set[str]()
    while more := {step.id for step in steps if step.id not in found and (gone | found) & set(step.needs)}:
        found |= more
    return found - gone


def _end_of_input(text: str, start: int, limit: int) -> int:
    """Where the bracket stands that closes an input: the balanced one, if the line ends there."""
    balanced = _balanced(text, start, limit)
    if balanced is not None and (text[balanced + 1 :].lstrip(" \t.;") or "\n")[0] == "\n":
        return balanced
    plan = _PLAN.search(text, start, limit)
    for end in (plan.start() if plan else limit, limit):
        last = text.rfind("]", start, end)
        if last >= 0:
            return last
    return text.find("\n", start, limit) if "\n" in text[start:limit] else limit


def _balanced(text: str, start: int, limit: int) -> int | None:
    closers, quote, position = ["]"], "", start
    while position < len(text):
        character = text[position]
        if quote:
            if character == "\\":
                position += 1
            elif character == quote:
                quote = ""
        elif character == '"' or (character == "'" and not _apostrophe(text, position)):
            quote = character
        elif character in _OPEN:
            closers.append(_CLOSE[_OPEN.index(character)])
        elif character in _CLOSE:
            if character != closers.pop():
                return None
            if not closers:
                return position
        position += 1
    return None


def _apostrophe(text: str, position: int) -> bool:
    """Whether a single quote stands within a word or after one: `Austen's`, `authors'`."""
    return position > 0 and text[position - 1].isalnum()


def _plan_before(text: str) -> str:
    found = list(_PLAN.finditer(text))
    return text[found[-1].end() :].strip() if found else text.strip()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"#{name}" for name in sorted(names))
