"""Talking with the company's models. What a person does here is in `chat_actions.py`; this is the page itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Markdown

from ..chat.answerers import Answerer, find_answerers
from ..chat.answering import Answering
from ..chat.attachments import path_completions
from ..chat.conversation import USER, Attachment, Conversation, Turn
from ..chat.history import History
from ..chat.options import FIELDS
from ..chat.slash import completions
from ..session import Session, as_line
from ..styles import beside
from ..widgets.answer_text import CodeFence
from ..widgets.chat_line import ChatLine
from ..widgets.options_panel import OptionsPanel
from ..widgets.prompt import Prompt
from ..widgets.prompt_area import PromptArea
from ..widgets.safe_text import plain_line, safe
from ..widgets.session_list import SessionList
from ..widgets.transcript import Transcript
from .chat_actions import ChatActions

DRAW_EVERY_S = 0.1
LOOK_EVERY_S = 10.0
WELCOME = "Ask something. / begins a command, enter sends, ctrl+j begins a new line, F1 shows the keys."


class ChatPage(ChatActions):
    HELP = """
## Chat

The prompt is below, the chats at the side (ctrl+b). ctrl+l chooses who answers, ctrl+o opens the options, alt+t goes
to the text to read it.
"""
    DEFAULT_CSS = beside(__file__)
    NAME = "chat"
    TITLE = "Chat"
    KEY = "f2"
    AUTO_FOCUS = "#area"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop"),
        Binding("ctrl+n", "new", "New"),
        Binding("ctrl+l", "model", "Model"),
        Binding("ctrl+o", "options", "Options"),
        Binding("alt+e", "edit", "Edit"),
        Binding("alt+r", "retry", "Again"),
        Binding("alt+c", "copy_code", "Copy code"),
        Binding("alt+a", "copy_answer", "Copy answer", show=False),
        Binding("alt+left", "branch(-1)", "Branch before", show=False, id="chat.branch_before"),
        Binding("alt+right", "branch(1)", "Branch after", show=False, id="chat.branch_after"),
        Binding("alt+n", "fork", "Fork", show=False),
        Binding("ctrl+b", "sidebar", "Chats", show=False),
        Binding("alt+t", "focus_transcript", "Read", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.history = History.of_this_person()
        self.conversation = Conversation.new()
        self.conversations: list[Conversation] = []
        self.answerers: list[Answerer] = []
        self.attached: list[Attachment] = []
        self.editing: Turn | None = None
        self.answering: dict[str, Answering] = {}
        self.looked = False
        self.writing = asyncio.Lock()
        self._drawn = 0

    def body(self) -> ComposeResult:
        with Horizontal():
            yield SessionList(id="sessions")
            with Vertical(id="talk"):
                yield Transcript(id="transcript")
                yield ChatLine(id="line")
                yield Prompt(self._completions, id="prompt")
            yield OptionsPanel(id="options")

    async def on_mount(self) -> None:
        self.query_one(OptionsPanel).display = False
        await self.transcript.show([], WELCOME)
        self.run(self._load())

    async def opened(self, session: Session) -> None:
        self.every(LOOK_EVERY_S, self._look)

    async def shown(self) -> None:
        await super().shown()
        for answering in self.answering.values():
            answering.news.set()  # what came while nobody looked

    async def _load(self) -> None:
        self.conversations, complaints = await asyncio.to_thread(self.history.load_all)
        self.prompt.set_past(await asyncio.to_thread(self.history.prompts))
        self.draw_sessions()
        for line in complaints:
            self.say(line, error=True)

    async def _look(self) -> None:
        self.answerers = await find_answerers(self.session)
        self.looked = True
        self.draw_line()

    # Drawing

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)

    def draw_sessions(self) -> None:
        known = {one.id: one for one in self.conversations}
        if self.conversation.turns or self.conversation.id in known:
            known[self.conversation.id] = self.conversation
        self.conversations = sorted(known.values(), key=lambda one: -one.changed)
        self.query_one(SessionList).show(self.conversations, self.conversation.id)

    async def draw_conversation(self) -> None:
        """All of what is shown of the conversation, and the answer that is coming, if one is."""
        path = self.conversation.path()
        answering = self.answering.get(self.conversation.id)
        if answering is not None:
            path = [turn for turn in path if turn.id != answering.turn.id]
        self._drawn = 0
        await self.transcript.show([(turn, self.head(turn)) for turn in path], WELCOME)
        if answering is not None:
            await self.transcript.begin(answering.turn, self.head(answering.turn))
        self.query_one(OptionsPanel).show(self.conversation.options)
        self.draw_line()
        self.draw_sessions()

    def draw_line(self) -> None:
        who = self.answerer()
        answering = self.answering.get(self.conversation.id)
        path = self.conversation.path()
        last = next((turn for turn in reversed(path) if turn.prompt_tokens), None)
        used = last.prompt_tokens + last.completion_tokens if last else 0
        rest: list[str] = []
        if answering is not None:
            used += answering.num_tokens
            rest.append(f"{answering.rate:.0f} tokens/s" if answering.first else "thinking \u2026")
        elif last is not None:
            rest.append(f"{last.tokens_per_s:.0f} tokens/s, first after {last.ttft_ms:.0f} ms")
        if self.attached:
            rest.append("with " + ", ".join(file.name for file in self.attached))
        if self.editing is not None:
            rest.append("editing a question (escape: not)")
        if who is not None:
            name = who.name
        elif self.conversation.where or self.looked:
            name = self.conversation.where or "no model is served: ctrl+l starts one"
        else:
            name = "\u2026"
        self.query_one(ChatLine).show(name, used, who.context_length if who else 0, " \u00b7 ".join(rest))

    def head(self, turn: Turn) -> Text:
        """Who speaks, which of several branches it is, why it ended, and how fast it was."""
        head = plain_line("")
        head.append("You" if turn.role == USER else safe(turn.model or "assistant"), "bold")
        beside = self.conversation.siblings(turn)
        if len(beside) > 1:
            place = [other.id for other in beside].index(turn.id) + 1 if turn in beside else len(beside)
            head.append(f"  \u2039{place}/{len(beside)}\u203a alt+\u2190\u2192", "dim")
        if turn.finish and turn.finish != "stop":
            ends = {"length": "cut off at its length", "stopped": "stopped"}
            head.append(f"  {ends.get(turn.finish, turn.finish)}", "dim italic")
        if turn.completion_tokens:
            head.append(f"  {turn.completion_tokens:,} tokens, {turn.tokens_per_s:.0f}/s", "dim")
        return head

    async def draw_answer(self, answering: Answering) -> None:
        """Until the answer has ended: what came since the last time, at most ten times a second, and less often where
        drawing takes long: two thirds of the time are for keys."""
        loop = asyncio.get_running_loop()
        while not answering.ended:
            await answering.news.wait()
            answering.news.clear()
            began = loop.time()
            if answering.conversation is self.conversation and self._visible:
                await self.draw_new_text(answering)
                self.draw_line()
            if not answering.ended:
                await asyncio.sleep(DRAW_EVERY_S)
                busy = loop.time() - began - DRAW_EVERY_S  # the layout, which follows later, included
                await asyncio.sleep(max(0.0, 2 * busy - DRAW_EVERY_S))

    async def draw_new_text(self, answering: Answering) -> None:
        text = answering.text
        if len(text) > self._drawn:
            new, self._drawn = text[self._drawn :], len(text)
            await self.transcript.feed(answering.turn.id, new)

    # What widgets say

    def on_prompt_area_scrolled(self, event: PromptArea.Scrolled) -> None:
        (self.transcript.scroll_page_up if event.pages < 0 else self.transcript.scroll_page_down)(animate=False)

    def on_code_fence_clicked(self, event: CodeFence.Clicked) -> None:
        self.copy(event.code, "the code")

    def on_markdown_link_clicked(self, event: Markdown.LinkClicked) -> None:
        event.stop()
        self.copy(event.href, "the link")  # nothing that a model wrote is opened by a click

    def on_options_panel_changed(self, event: OptionsPanel.Changed) -> None:
        self.conversation.options = event.options
        self.save()

    def on_options_panel_wrong(self, event: OptionsPanel.Wrong) -> None:
        self.say(event.why)

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        self.run(self.send(event.text))

    def on_session_list_wish(self, event: SessionList.Wish) -> None:
        self.run(self.wish(event.what, event.id))

    def _completions(self, line: str) -> list[tuple[str, str]]:
        return completions(line, self._values)

    def _values(self, kind: str, start: str) -> Sequence[str]:
        if kind == "models":
            return [who.name for who in self.answerers]
        if kind == "options":
            return [f"{name} " for name in FIELDS]
        if kind == "copy":
            return ["code"]
        return path_completions(start)

    def say_error(self, error: Exception) -> None:
        self.say(as_line(error), error=True)
