"""Where in a rendered conversation the assistant speaks, exactly. The text that it says is never searched for, since
it may occur elsewhere too. In this order:

1. What the template itself marks, between `{% generation %}` and `{% endgeneration %}`.
2. Between two renderings that are true beginnings of the whole: of the messages before a turn, with the prompt that
   makes the model speak, and of the messages up to and with the turn.

       whole:           <|user|>Hi<|assistant|>Hello<|end|><|user|>...
       before, prompt:  <|user|>Hi<|assistant|>
       with the turn:   <|user|>Hi<|assistant|>Hello<|end|>
                                              ^^^^^^^^^^^^ the turn

3. Where one of the two is no beginning (some templates write an earlier turn otherwise than the last one): the place
   of the turn's content, by marks around it that are taken out again. The whole must come out the same without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from ...runtime.errors import RequestInvalid
from ..models.chat_template import END, START, ChatTemplate, take_marks
from .errors import NoSpans
from .fitting import Message


class Ending(Enum):
    """What may still be wrong with a span's end, where only the tokens tell."""

    MARKED = "marked"  # the template's author set it; the token that ends the turn may stand behind
    TURN = "turn"  # space that the template writes behind the token that ends the turn is still in it
    CONTENT = "content"  # the token that ends the turn stands behind it


class Span(NamedTuple):
    """Characters `start` to `end` of a text."""

    start: int
    end: int
    ending: Ending


def find_spans(
    template: ChatTemplate,
    messages: Sequence[Message],
    tools: Sequence[dict[str, Any]] | None,
    loss: Sequence[bool],
) -> tuple[str, list[Span]]:
    """(the conversation rendered, where the messages speak of which `loss` is true).

    Raises NoSpans where that cannot be told, RequestInvalid where the template refuses the messages.
    """
    text, marked = template.render_marked(messages, tools=tools)
    speaking = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    wanted = [index for index in speaking if loss[index]]
    if marked and len(marked) == len(speaking):
        of = dict(zip(speaking, marked, strict=True))
        return text, [Span(*of[index], Ending.MARKED) for index in wanted]
    if marked and wanted == speaking:
        return text, [Span(*span, Ending.MARKED) for span in marked]
    search = _Search(template, messages, tools, text)
    return text, [search.span(index) for index in wanted]


class _Search:
    def __init__(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        text: str,
    ) -> None:
        self._template = template
        self._messages = messages
        self._tools = tools
        self._text = text

    def span(self, index: int) -> Span:
        start = self._length_before(index, prompt=True)
        is_last = index + 1 == len(self._messages)
        end = len(self._text) if is_last else self._length_before(index + 1, prompt=False)
        ending = Ending.TURN
        if start is None or end is None:
            content = self._content(index)
            if content is not None:
                start = content[0] if start is None else start
                # Calls are written behind the content, so its end is not the turn's.
                if end is None and not self._messages[index].get("tool_calls"):
                    end, ending = content[1], Ending.CONTENT
        if start is None or end is None or start >= end:
            raise NoSpans(
                f"the chat template does not show where message {index + 1} (of the assistant) is in its text"
            )
        return Span(start, end, ending)

    def _length_before(self, count: int, *, prompt: bool) -> int | None:
        """How long the rendering of the first `count` messages is; None if the whole text does not begin with it."""
        try:
            part = self._template.render(self._messages[:count], tools=self._tools, add_generation_prompt=prompt)
        except RequestInvalid:
            return None
        return len(part) if self._text.startswith(part) else None

    def _content(self, index: int) -> tuple[int, int] | None:
        content = self._messages[index]["content"]
        bare = content.strip()  # templates trim: marks outside of the space would keep it
        if not bare:
            return None
        at = content.index(bare)
        marked = {**self._messages[index], "content": f"{content[:at]}{START}{bare}{END}{content[at + len(bare) :]}"}
        messages = [*self._messages[:index], marked, *self._messages[index + 1 :]]
        try:
            text, spans = take_marks(
                self._template.render(messages, tools=self._tools, add_generation_prompt=False),
            )
        except RequestInvalid:
            return None
        return spans[0] if text == self._text and len(spans) == 1 else None
