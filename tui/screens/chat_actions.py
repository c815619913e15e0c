"""What else a person does on the page of chats: other chats, copying, options, slash commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import msgspec
from textual.app import SystemCommand

from ...runtime.errors import UsageError
from ...schemas.serve import CloseSession
from ..bindings import bindings_of
from ..chat.attachments import read_attachment
from ..chat.conversation import ASSISTANT, Conversation, as_markdown, code_blocks
from ..chat.options import read_option
from ..chat.slash import COMMANDS, parse
from ..copying import Copied
from ..session import NotConnected
from ..widgets.ask_text import AskText
from ..widgets.choose import Choose
from ..widgets.confirm import Confirm
from ..widgets.options_panel import OptionsPanel
from ..widgets.session_list import SessionList
from .chat_sending import ChatSending


class ChatActions(ChatSending):
    """A part of ChatPage, which alone derives from this."""

    # Conversations

    async def open(self, conversation: Conversation) -> None:
        me = self.me
        me.conversation = conversation
        me.editing = None
        await me.draw_conversation()
        me.prompt.area.focus()

    async def action_new(self) -> None:
        me = self.me
        fresh = Conversation.new()
        fresh.where, fresh.adapter = me.conversation.where, me.conversation.adapter
        fresh.options = me.conversation.options
        await self.open(fresh)

    def action_fork(self) -> None:
        self.run(self.wish("fork", self.me.conversation.id))

    async def wish(self, what: str, id: str) -> None:
        """What the list of sessions asks for: open, rename, fork, delete."""
        me = self.me
        known = {one.id: one for one in [*me.conversations, me.conversation]}
        conversation = known.get(id)
        if conversation is None:
            return
        if what == "open":
            await self.open(conversation)
        elif what == "rename":
            title = await self.app.push_screen_wait(AskText("Title", conversation.title))
            if title and title.strip():
                await self._rename(conversation, title.strip())
        elif what == "fork":
            await self.open(conversation.fork())
            self.save()
            me.draw_sessions()
        elif what == "delete":
            await self._delete(conversation)

    async def _rename(self, conversation: Conversation, title: str) -> None:
        conversation.title = title
        self.save(conversation)
        self.me.draw_sessions()

    async def _delete(self, conversation: Conversation) -> None:
        me = self.me
        question = f"Delete \u201c{conversation.shown_title}\u201d?"
        if not await self.app.push_screen_wait(Confirm(question, "It cannot be brought back.", yes="Delete")):
            return
        if (answering := me.answering.get(conversation.id)) is not None and answering.asking is not None:
            answering.asking.cancel()
        who = self.answerer()
        conversation.turns.clear()
        conversation.leaf = ""
        async with me.writing:
            await asyncio.to_thread(me.history.delete, conversation.id)
        me.conversations = [one for one in me.conversations if one.id != conversation.id]
        if me.conversation is conversation:
            await self.open(me.conversations[0] if me.conversations else Conversation.new())
        me.draw_sessions()
        if who is not None and who.context_length:
            try:
                await self.session.ask(who.where, CloseSession(f"tui-{conversation.id}"), 3.0)
            except NotConnected:
                return  # its time to live ends it too

    # Copying, and the rest

    def copied(self) -> Copied | None:
        answer = next((turn for turn in reversed(self.me.conversation.path()) if turn.role == ASSISTANT), None)
        return Copied(answer.text, "the answer") if answer is not None else None

    def action_copy_answer(self) -> None:
        self.action_copy()

    def action_copy_code(self) -> None:
        self.run(self._copy_code())

    async def _copy_code(self) -> None:
        turns = reversed(self.me.conversation.path())
        blocks = [block for turn in turns if turn.role == ASSISTANT for block in reversed([*code_blocks(turn.text)])]
        if not blocks:
            raise UsageError("no answer here has a block of code", hint="alt+a copies the whole answer")
        place = 0
        if len(blocks) > 1:
            options = [
                (str(n), f"{language or 'text'}: {code.strip()[:60]}") for n, (language, code) in enumerate(blocks)
            ]
            chosen = await self.app.push_screen_wait(Choose("Which?", options))
            if chosen is None:
                return
            place = int(chosen)
        self.copy(blocks[place][1], "the code")

    def action_options(self) -> None:
        panel = self.query_one(OptionsPanel)
        panel.display = not panel.display
        if panel.display:
            panel.show(self.me.conversation.options)
            panel.query("Input").first().focus()
        else:
            self.me.prompt.area.focus()

    def action_sidebar(self) -> None:
        """To the list, which shows itself where it was hidden for want of room; and back."""
        sessions = self.query_one(SessionList)
        if sessions.has_focus_within:
            sessions.styles.display = None  # as the size of the terminal has it
            self.me.prompt.area.focus()
        else:
            sessions.styles.display = "block"
            sessions.query_one("#conversations").focus()

    def action_focus_transcript(self) -> None:
        self.me.transcript.focus()

    def more_commands(self) -> Iterable[SystemCommand]:
        """The slash commands that no key has."""
        with_keys = {id.partition(".")[2] for id in bindings_of(type(self))}
        for name, slash in COMMANDS.items():
            if name not in with_keys:
                yield SystemCommand(f"Chat: /{name}", slash.help, partial(self._begin_command, name))

    def _begin_command(self, name: str) -> None:
        self.run(self._ask_and_command(name))

    async def _ask_and_command(self, name: str) -> None:
        """In a dialog, since there may be a draft in the prompt."""
        slash = COMMANDS[name]
        argument = ""
        if slash.wants:
            asked = await self.app.push_screen_wait(AskText(slash.help, placeholder=slash.wants))
            if asked is None:
                return
            argument = asked
        await self.command(*parse(f"/{name} {argument}".rstrip()))

    async def command(self, name: str, argument: str) -> None:
        """A slash command."""
        me = self.me
        if name == "new":
            await self.action_new()
        elif name == "rename":
            await self._rename(me.conversation, argument)
        elif name in ("fork", "delete"):
            await self.wish(name, me.conversation.id)
        elif name == "model":
            await self._choose_model(argument)
        elif name in ("system", "set"):
            option, _, value = ("system", "", argument) if name == "system" else argument.partition(" ")
            me.conversation.options = msgspec.structs.replace(
                me.conversation.options, **{option: read_option(option, value)}
            )
            self.query_one(OptionsPanel).show(me.conversation.options)
            self.save()
            self.say(f"{option}: {value.strip() or 'as usual'}")
        elif name == "options":
            self.action_options()
        elif name == "attach":
            me.attached.append(await asyncio.to_thread(read_attachment, argument))
        elif name == "detach":
            me.attached = []
        elif name == "edit":
            self.action_edit()
        elif name == "retry":
            await self._retry()
        elif name == "stop":
            self.action_stop()
        elif name == "copy":
            if argument == "code":
                await self._copy_code()
            else:
                self.action_copy_answer()
        elif name == "export":
            await self._export(argument)
        elif name == "help":
            self.say("  ".join(f"/{one}" for one in COMMANDS))
            self.app.action_show_help_panel()
        me.draw_line()

    async def _export(self, place: str) -> None:
        path = await asyncio.to_thread(Path(place).expanduser)
        if await asyncio.to_thread(path.exists) and not await self.app.push_screen_wait(
            Confirm(f"Write over {path}?", yes="Write")
        ):
            return
        try:
            await asyncio.to_thread(path.write_text, as_markdown(self.me.conversation), "utf-8")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        self.say(f"written to {path}")
