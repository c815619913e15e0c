"""A sample as it will be asked, whatever file it came from."""

from __future__ import annotations

import enum

import msgspec


class Kind(enum.Enum):
    """How a sample is asked: which of some choices is the likeliest, what comes of a prompt, whether a text's last word
    is foreseen, how likely a text is."""

    CHOICE = "choice"
    ANSWER = "answer"
    LAST_WORD = "last_word"
    TEXT = "text"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What stands before the answer, and the answer.

        intro  examples  prompt  lead  answer

    CHOICE: `choices`, of which the one at `right` is; with `contexts`, each choice has a prompt of its own and what is
    scored is `ending`, which is the same for all. ANSWER: any of `answers` is right. LAST_WORD: `choices` is the word
    alone. TEXT: `prompt` is the text. `example`: the answer as an example shows it.
    """

    index: int = 0
    line: int = 0
    prompt: str = ""
    intro: str = ""
    lead: str = " "
    choices: tuple[str, ...] = ()
    right: int = 0
    contexts: tuple[str, ...] = ()
    ending: str = ""
    answers: tuple[str, ...] = ()
    example: str = ""

    @property
    def as_example(self) -> str:
        """The question with its right answer."""
        if self.contexts:
            return self.contexts[self.right] + self.ending
        return self.prompt + self.lead + self.example
