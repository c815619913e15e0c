"""Which answer of a script is for which call: plain logic, no I/O.

CallboardError
└── ScriptError        scripted
    ├── UnexpectedCall scripted.unexpected  no answer of the script is for this call
    └── UnusedAnswers  scripted.unused      the play is over, and answers are left
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from ...runtime.errors import CallboardError, ConfigError
from ...schemas.scripted import Match, Part, ScriptedAnswer
from ...schemas.serve import Generate

Predicate = Callable[[Generate], bool]

SHOWN_CHARACTERS = 200


class ScriptError(CallboardError):
    code = "scripted"


class UnexpectedCall(ScriptError):
    code = "scripted.unexpected"


class UnusedAnswers(ScriptError):
    code = "scripted.unused"
    default_hint = "whoever played asked less than the script foresaw; `scripted.calls` shows what was asked"


class Script:
    """The answers, and how often each was used.

    `ordered`: the next answer that is not used up must be for the next call; else the first that is for it is taken.
    `each_session`: every session plays the whole script by itself, as though it were alone. `find` names a predicate.
    Raises ConfigError for a pattern or a predicate that is none.
    """

    def __init__(
        self,
        answers: Sequence[ScriptedAnswer],
        *,
        ordered: bool = True,
        each_session: bool = False,
        find: Callable[[str], Predicate] | None = None,
    ) -> None:
        self._ordered = ordered
        self._each_session = each_session
        self._find = find
        self.answers: list[ScriptedAnswer] = []
        self._tests: list[Predicate] = []
        self._used: dict[str, list[int]] = {}
        self.unexpected = 0
        self.extend(answers)

    def extend(self, answers: Sequence[ScriptedAnswer]) -> None:
        self._tests += [_test_of(answer, self._find) for answer in answers]
        self.answers += answers
        for used in self._used.values():
            used += [0] * len(answers)

    def take(self, request: Generate) -> int:
        """The place of the answer to this call, which is used once more then. Raises UnexpectedCall."""
        used = self._uses(request.session if self._each_session else "")
        for place, answer in enumerate(self.answers):
            if answer.times and used[place] >= answer.times:
                continue
            if self._tests[place](request):
                used[place] += 1
                return place
            if self._ordered and answer.times:
                break
        self.unexpected += 1
        raise UnexpectedCall(
            f"call {sum(used) + 1} of the script is not expected: {_shown(last_text(request))}",
            hint=self._hint(used),
        )

    def unused(self) -> tuple[int, ...]:
        """Places of answers that were used less often than they are there for, in any session that began."""
        plays = self._used.values() or [[0] * len(self.answers)]
        return tuple(
            place for place, answer in enumerate(self.answers) if any(used[place] < answer.times for used in plays)
        )

    def check_finished(self) -> None:
        """Raises UnexpectedCall where there was one, UnusedAnswers where an answer is left."""
        if self.unexpected:
            raise UnexpectedCall(
                f"{self.unexpected} calls were not expected by the script", hint="`scripted.calls` shows them"
            )
        if unused := self.unused():
            first = self.answers[unused[0]]
            raise UnusedAnswers(
                f"{len(unused)} of {len(self.answers)} scripted answers are left, the first at {unused[0]}: "
                + _shown(first.text)
            )

    def _uses(self, play: str) -> list[int]:
        return self._used.setdefault(play, [0] * len(self.answers))

    def _hint(self, used: Sequence[int]) -> str:
        left = [
            (place, answer)
            for place, answer in enumerate(self.answers)
            if not answer.times or used[place] < answer.times
        ]
        if not left:
            return "no answer is left"
        place, answer = left[0]
        wanted = answer.match.value + (f" {_shown(answer.pattern)}" if answer.pattern else "")
        whose = f" in session '{answer.session}'" if answer.session else ""
        return f"the script goes on at {place}, for {wanted}{whose}"


def last_text(request: Generate) -> str:
    return request.messages[-1].content if request.messages else request.prompt


def all_text(request: Generate) -> str:
    if not request.messages:
        return request.prompt
    return "\n".join(f"{message.role}: {message.content}" for message in request.messages)


def _test_of(answer: ScriptedAnswer, find: Callable[[str], Predicate] | None) -> Predicate:
    test = _pattern_test(answer, find)
    session = answer.session
    return (lambda request: request.session == session and test(request)) if session else test


def _pattern_test(answer: ScriptedAnswer, find: Callable[[str], Predicate] | None) -> Predicate:
    pattern = answer.pattern
    text = last_text if answer.part is Part.LAST else all_text
    match answer.match:
        case Match.ANY:
            return lambda _: True
        case Match.EXACT:
            return lambda request: text(request) == pattern
        case Match.CONTAINS:
            return lambda request: pattern in text(request)
        case Match.REGEX:
            try:
                search = re.compile(pattern, re.DOTALL).search
            except re.error as error:
                raise ConfigError(f"'{pattern}' is no regular expression: {error}") from error
            return lambda request: search(text(request)) is not None
        case Match.PREDICATE:
            if find is None:
                raise ConfigError(f"nobody here knows a predicate '{pattern}'")
            return find(pattern)


def named_predicate(known: Mapping[str, Predicate], allow: Sequence[str]) -> Callable[[str], Predicate]:
    """Finds predicates among `known`, or as `module:function` of a module that the node was told to allow."""

    def find(name: str) -> Predicate:
        if name in known:
            return known[name]
        module, _, function = name.partition(":")
        if module not in allow:
            raise ConfigError(
                f"there is no predicate '{name}' here",
                hint="name it in `predicates` of a class derived from Scripted, or start the node with --load FILE "
                "and name it `module:function`",
            )
        import importlib

        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the predicate '{name}' cannot be loaded: {error}") from error

    return find


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
