"""What the board knows: questions, their ends, their keys. Pure bookkeeping over the events of its log.

Events may come twice (a compaction says again what is there), and then change nothing.
"""

from __future__ import annotations

from ...schemas.question import Answered, BoardRead, Question, QuestionEnded, QuestionPut

# Events of the log that stand for nothing any more, before it is worth to say the rest anew.
COMPACT_OVER = 256


class BoardState:
    """`open` are the ids without an answer."""

    def __init__(self) -> None:
        self.questions: dict[str, Question] = {}
        self.answers: dict[str, Answered] = {}
        self.open: set[str] = set()
        self._keys: dict[tuple[str, str], str] = {}
        self._key_of: dict[str, str] = {}
        self._written = 0

    def apply(self, event: QuestionPut | QuestionEnded | BoardRead) -> None:
        self._written += 1
        if isinstance(event, BoardRead):
            return
        if isinstance(event, QuestionPut):
            question = event.question
            self.questions[question.id] = question
            if question.id not in self.answers:
                self.open.add(question.id)
            if event.key:
                self._keys[question.asker, event.key] = question.id
                self._key_of[question.id] = event.key
        elif event.answered.id in self.questions:
            self.answers[event.answered.id] = event.answered
            self.open.discard(event.answered.id)

    def of_key(self, asker: str, key: str) -> Question | None:
        """The question that this asker put under that key."""
        id = self._keys.get((asker, key)) if key else None
        return self.questions[id] if id is not None else None

    def drop(self, id: str) -> None:
        """Forget a question, as if it had never been."""
        question = self.questions.pop(id)
        self.answers.pop(id, None)
        self.open.discard(id)
        key = self._key_of.pop(id, "")
        if self._keys.get((question.asker, key)) == id:
            del self._keys[question.asker, key]

    def due(self, now: float) -> list[Question]:
        return [self.questions[id] for id in self.open if 0 < self.questions[id].expires <= now]

    def next_expiry(self) -> float | None:
        return min((self.questions[id].expires for id in self.open if self.questions[id].expires), default=None)

    def forget(self, before: float) -> None:
        for answered in [one for one in self.answers.values() if one.at < before]:
            self.drop(answered.id)

    def worth_compaction(self) -> bool:
        return self._written > COMPACT_OVER + 2 * (len(self.questions) + len(self.answers))

    def events(self) -> list[QuestionPut | QuestionEnded]:
        """What stands for all that is known now."""
        puts = [QuestionPut(question, self._key_of.get(id, "")) for id, question in self.questions.items()]
        return [*puts, *map(QuestionEnded, self.answers.values())]

    def compacted(self) -> None:
        self._written = len(self.questions) + len(self.answers)
