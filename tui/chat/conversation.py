"""A conversation as a tree of turns: an edited question and an answer asked for again are branches beside the old ones.

Turns are never changed once they are whole, and their ids are random, so two windows that went on with the same
conversation are brought together by taking the turns of both.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator

import msgspec

from ...schemas.serve import ChatMessage, Generate

USER, ASSISTANT = "user", "assistant"
TITLE_LENGTH = 60
# The longest file that goes into a question as text.
LARGEST_ATTACHMENT = 256 * 1024


class Attachment(msgspec.Struct, frozen=True):
    """A file that goes with a question, as text."""

    name: str
    text: str


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are drawn, for a conversation; as in `Generate`. `max_tokens` None: the engine's default."""

    system: str = ""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """`parent`: the id of the turn before, "" for the first. Of an answer: who gave it, why it ended ("stopped" by the
    person, "failed" part of the way), and its figures as the engine gave them."""

    id: str
    parent: str
    role: str
    text: str
    at: float
    attachments: tuple[Attachment, ...] = ()
    model: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    tokens_per_s: float = 0.0
    ttft_ms: float = 0.0

    @property
    def content(self) -> str:
        """What the model reads: the text, with each attached file in a fence before it."""
        return "\n\n".join([*(_fenced(file) for file in self.attachments), self.text])


class Conversation(msgspec.Struct, kw_only=True):
    """`leaf`: the turn that is the end of what is shown, "" for none yet. `where` and `adapter`: who is asked."""

    id: str
    title: str = ""
    created: float = 0.0
    changed: float = 0.0
    turns: dict[str, Turn] = {}
    leaf: str = ""
    where: str = ""
    adapter: str = ""
    options: Options = Options()

    @classmethod
    def new(cls) -> Conversation:
        now = time.time()
        return cls(id=secrets.token_hex(8), created=now, changed=now)

    @property
    def shown_title(self) -> str:
        return self.title or "New chat"

    def path(self) -> list[Turn]:
        """The turns that are shown, first to last."""
        turns: list[Turn] = []
        at = self.leaf
        while at in self.turns and len(turns) <= len(self.turns):
            turns.append(self.turns[at])
            at = self.turns[at].parent
        return turns[::-1]

    def siblings(self, turn: Turn) -> list[Turn]:
        """The turns that stand at the same place, itself among them, oldest first."""
        beside = [other for other in self.turns.values() if other.parent == turn.parent and other.role == turn.role]
        return sorted(beside, key=lambda other: (other.at, other.id))

    def add(self, role: str, text: str, parent: str | None = None, **more: object) -> Turn:
        """A turn after `parent` (default: the end of what is shown), which it becomes."""
        turn = msgspec.convert(
            {"id": secrets.token_hex(6), "parent": self.leaf if parent is None else parent, "role": role}
            | {"text": text, "at": time.time(), **more},
            Turn,
        )
        self.turns[turn.id] = turn
        self.leaf = turn.id
        self.changed = turn.at
        if not self.title and role == USER:
            self.title = title_of(text)
        return turn

    def put(self, turn: Turn) -> None:
        """The same turn, whole now."""
        self.turns[turn.id] = turn
        self.changed = time.time()

    def remove(self, turn: Turn) -> None:
        """Take back a turn that nothing follows."""
        self.turns.pop(turn.id, None)
        if self.leaf == turn.id:
            self.leaf = turn.parent

    def show_branch(self, turn: Turn, step: int) -> bool:
        """Show the branch through the sibling that is `step` further; whether there is one."""
        beside = self.siblings(turn)
        place = [other.id for other in beside].index(turn.id) + step
        if not 0 <= place < len(beside):
            return False
        self.leaf = self._end_of(beside[place]).id
        return True

    def _end_of(self, turn: Turn) -> Turn:
        """Down from a turn by what was said last."""
        while after := [other for other in self.turns.values() if other.parent == turn.id]:
            turn = max(after, key=lambda other: (other.at, other.id))
        return turn

    def fork(self) -> Conversation:
        """A conversation of its own that begins with what is shown of this one."""
        other = Conversation.new()
        other.title = f"{self.shown_title} (fork)"
        other.where, other.adapter, other.options = self.where, self.adapter, self.options
        parent = ""
        for turn in self.path():
            copy = msgspec.structs.replace(turn, id=secrets.token_hex(6), parent=parent)
            other.turns[copy.id] = copy
            other.leaf = parent = copy.id
        return other

    def merged(self, other: Conversation) -> Conversation:
        """With the turns of another window's copy; the rest as it is here."""
        return msgspec.structs.replace(self, turns={**other.turns, **self.turns})

    def request(self) -> Generate:
        """What to ask for the turn after the last one that is shown."""
        options = self.options
        system = [ChatMessage("system", options.system)] if options.system else []
        turns = [ChatMessage(turn.role, turn.content) for turn in self.path()]
        return Generate(
            messages=(*system, *turns),
            # One for each conversation: the engine keeps what it computed for the turns so far.
            session=f"tui-{self.id}",
            adapter=self.adapter,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed,
            stop=options.stop,
        )

    def matches(self, words: Iterable[str]) -> bool:
        """Whether each word occurs in the title or in some turn."""
        texts = [self.title.lower(), *(turn.text.lower() for turn in self.turns.values())]
        return all(any(word in text for text in texts) for word in words)


def title_of(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= TITLE_LENGTH else line[: TITLE_LENGTH - 1] + "\u2026"


def as_markdown(conversation: Conversation) -> str:
    """What is shown, as a document."""
    parts = [f"# {conversation.shown_title}"]
    for turn in conversation.path():
        parts += [f"## {turn.model or turn.role}", turn.content]
    return "\n\n".join(parts) + "\n"


def code_blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, code) of each fenced block; one that is not closed yet goes to the end."""
    fence, language, lines = "", "", list[str]()
    for line in text.splitlines():
        start = line.lstrip()
        mark = start[: len(start) - len(start.lstrip("`"))] or start[: len(start) - len(start.lstrip("~"))]
        if not fence and len(mark) >= 3:
            fence, language, lines = mark, start[len(mark) :].strip(), []
        elif fence and mark.startswith(fence) and not start[len(mark) :].strip():
            yield language, "\n".join(lines)
            fence = ""
        elif fence:
            lines.append(line)
    if fence and lines:
        yield language, "\n".join(lines)


def _fenced(file: Attachment) -> str:
    longest = max((len(part) for part in file.text.split("\n") if set(part) == {"`"}), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{file.name}:\n{fence}\n{file.text}\n{fence}"
