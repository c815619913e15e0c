"""Asking on the page of chats: send, stop, ask again, edit, choose who answers, start an engine."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import msgspec

from ...runtime.errors import CallboardError, UsageError
from ..chat.answerers import ENGINE, START_TIMEOUT_S, Answerer
from ..chat.answering import FAILED, STOPPED, Answering
from ..chat.conversation import ASSISTANT, USER, Conversation, Turn
from ..chat.slash import parse
from ..session import as_line
from ..widgets.choose import Choose
from ..widgets.confirm import Confirm
from .base import Page

if TYPE_CHECKING:
    from .chat import ChatPage

# Another answer to the same question is drawn; the likeliest one would be the same again.
ANOTHER = 0.8
_START = "\0start"


class ChatSending(Page):
    """A part of ChatPage, which alone derives from this (through ChatActions)."""

    async def command(self, name: str, argument: str) -> None:
        """A slash command; see ChatActions."""

    @property
    def me(self) -> ChatPage:
        return cast("ChatPage", self)

    # Sending

    async def send(self, text: str) -> None:
        me = self.me
        if text.startswith("/") and not text.startswith("//"):
            try:
                await self.command(*parse(text.rstrip()))
            except CallboardError:
                me.prompt.give_back(text)
                raise
            return
        written, text = text, text.removeprefix("/") if text.startswith("//") else text
        if not text.strip():
            return
        try:
            if me.conversation.id in me.answering:
                raise UsageError("an answer is coming", hint="escape stops it")
            who = await self.somebody()
        except CallboardError:
            me.prompt.give_back(written)
            raise
        parent = me.editing.parent if me.editing is not None else None
        asked = me.conversation.add(USER, text, parent, attachments=tuple(me.attached))
        attached, me.attached, me.editing = me.attached, [], None
        me.prompt.remember(text)
        await asyncio.to_thread(me.history.remember, text)
        if not await self.answer(who, asked):
            # Nothing came of it: the question is as if it had not been asked, and is where it can be sent again.
            me.conversation.remove(asked)
            me.attached = attached
            me.prompt.give_back(written)
            await me.draw_conversation()
            self.save()

    async def answer(self, who: Answerer, asked: Turn, least_temperature: float = 0.0) -> bool:
        """Ask for an answer to the last turn that is shown. Whether anything came."""
        me = self.me
        conversation = me.conversation
        request = conversation.request()
        request = msgspec.structs.replace(request, temperature=max(request.temperature, least_temperature))
        turn = conversation.add(ASSISTANT, "", model=who.name)
        answering = Answering(conversation, turn, asked, who.name)
        me.answering[conversation.id] = answering
        await me.draw_conversation()
        self.save()
        finish = STOPPED
        drawing = asyncio.create_task(me.draw_answer(answering))
        asking = answering.asking = asyncio.create_task(answering.run(self.session, who.where, request))
        try:
            await asyncio.wait([asking])
            if not asking.cancelled() and (error := asking.exception()) is not None:
                finish = FAILED
                if not isinstance(error, CallboardError):
                    raise error
                self.say(as_line(error), error=True)
            elif not asking.cancelled() and not answering.text:
                self.say("the answer was empty", error=True)
        finally:
            asking.cancel()
            await drawing
            del me.answering[conversation.id]
            whole = answering.whole(finish)
            if whole.text:
                conversation.put(whole)
            else:
                conversation.remove(turn)
            if me.conversation is conversation and me.is_running:
                if whole.text:
                    await me.draw_new_text(answering)
                    await me.transcript.finish(turn.id, me.head(whole))
                me.draw_line()
                me.draw_sessions()
            self.save(conversation)
        return bool(whole.text)

    def action_stop(self) -> None:
        """Escape: the completions go, then the answer stops, then an edit is given up."""
        me = self.me
        answering = me.answering.get(me.conversation.id)
        if me.prompt.hide_completions():
            return
        if answering is not None and answering.asking is not None:
            answering.asking.cancel()
        elif me.editing is not None:
            me.editing = None
            me.prompt.text = ""
            me.draw_line()
        else:
            me.prompt.area.focus()

    def action_retry(self) -> None:
        self.run(self._retry())

    async def _retry(self) -> None:
        me = self.me
        if me.conversation.id in me.answering:
            raise UsageError("an answer is coming", hint="escape stops it")
        path = me.conversation.path()
        asked = next((turn for turn in reversed(path) if turn.role == USER), None)
        if asked is None:
            raise UsageError("there is no question yet", hint="ask one")
        who = await self.somebody()
        before = me.conversation.leaf
        me.conversation.leaf = asked.id
        if not await self.answer(who, asked, ANOTHER):
            me.conversation.leaf = before
            await me.draw_conversation()

    def action_edit(self) -> None:
        """The last question comes back to be written anew; again, the one before it."""
        me = self.me
        questions = [turn for turn in me.conversation.path() if turn.role == USER]
        if me.editing is not None and me.editing in questions:
            questions = questions[: questions.index(me.editing)] or questions
        if questions:
            me.editing = questions[-1]
            me.attached = list(me.editing.attachments)
            me.prompt.text = me.editing.text
            me.prompt.area.focus()
            me.draw_line()

    def action_branch(self, step: int) -> None:
        me = self.me
        for turn in reversed(me.conversation.path()):
            if len(me.conversation.siblings(turn)) > 1:
                if me.conversation.id not in me.answering and me.conversation.show_branch(turn, step):
                    self.run(me.draw_conversation())
                    self.save()
                return

    # Who answers

    def answerer(self) -> Answerer | None:
        """Who would answer now: the one that the conversation has chosen, else the first that is there."""
        me = self.me
        chosen = me.conversation
        for who in me.answerers:
            if not chosen.where or (who.where, who.adapter) == (chosen.where, chosen.adapter):
                return who
        return None

    async def somebody(self) -> Answerer:
        """The same, looked for anew where nobody is known. Starts an engine if the person agrees."""
        me = self.me
        if self.answerer() is None:
            await me._look()
        who = self.answerer()
        if who is None and me.conversation.where:
            raise UsageError(f"{me.conversation.where} is not there", hint="ctrl+l chooses who answers")
        if who is None:
            who = await self._start_engine()
        return who

    async def _start_engine(self) -> Answerer:
        from ...runtime.settings import load_settings

        me = self.me
        settings = load_settings()
        question = f"No model is served. Start {settings.model}?"
        if not await self.app.push_screen_wait(Confirm(question, "It stays when this app is closed.", yes="Start")):
            raise UsageError("no model is served", hint="ctrl+l starts one, and so does `callboard up MODEL`")
        self.say(f"{settings.model} is being loaded \u2026")
        config = msgspec.json.encode({"model": settings.model, **settings.engine}).decode()
        async with asyncio.timeout(START_TIMEOUT_S):
            await self.session.client.spawn(ENGINE, config, name="engine", process=True)
        await me._look()
        self.say(f"{settings.model} is ready")
        if (who := self.answerer()) is None:
            raise UsageError("the engine does not answer", hint="`callboard logs engine` says what it does")
        return who

    def action_model(self) -> None:
        self.run(self._choose_model())

    async def _choose_model(self, name: str = "") -> None:
        me = self.me
        await me._look()
        options = [
            (str(place), f"{who.name}   {f'{who.context_length:,} tokens' if who.context_length else who.where}")
            for place, who in enumerate(me.answerers)
        ]
        if not any(who.context_length for who in me.answerers):
            options.append((_START, "start an engine \u2026"))
        if name:
            chosen = next((str(place) for place, who in enumerate(me.answerers) if who.name == name), None)
            if chosen is None:
                raise UsageError(f"no model '{name}' is served", hint="/model lists those that are")
        else:
            chosen = await self.app.push_screen_wait(Choose("Who is to answer?", options))
        if chosen is None:
            return
        who = await self._start_engine() if chosen == _START else me.answerers[int(chosen)]
        me.conversation.where, me.conversation.adapter = who.where, who.adapter
        me.draw_line()
        self.save()

    # Keeping

    def save(self, conversation: Conversation | None = None) -> None:
        """Write it, beside the rest; one that nothing was said in is not kept."""
        conversation = conversation or self.me.conversation
        if conversation.turns:
            self.run(self._save(conversation))

    async def _save(self, conversation: Conversation) -> None:
        me = self.me
        # A copy: it may go on while a thread writes it. An answer that is still coming is not written yet.
        answering = me.answering.get(conversation.id)
        turns = {id: turn for id, turn in conversation.turns.items() if answering is None or id != answering.turn.id}
        leaf = answering.turn.parent if answering is not None else conversation.leaf
        async with me.writing:
            await asyncio.to_thread(me.history.save, msgspec.structs.replace(conversation, turns=turns, leaf=leaf))
