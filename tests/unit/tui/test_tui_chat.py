"""The page of chats on a real daemon, with a scripted model: what is sent, shown, kept, copied, given back."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from textual import events
from tui_support import Daemon, Eventually, OpenApp, Picture, Running

from callboard.runtime.client import Client
from callboard.schemas.scripted import (
    ExtendScript,
    GetScriptedCalls,
    Match,
    ReleaseScript,
    ScriptedAnswer,
)
from callboard.tui.chat.conversation import Conversation
from callboard.tui.chat.history import History
from callboard.tui.widgets.ask_text import AskText
from callboard.tui.widgets.choose import Choose
from callboard.tui.widgets.confirm import Confirm
from callboard.tui.widgets.options_panel import OptionsPanel
from callboard.tui.widgets.transcript import Transcript

pytestmark = pytest.mark.anyio

CODE = "Here it is:\n\n```python\nprint('hello')\n```\n\nThat is **all**."


class Model:
    """A scripted model on the module's daemon."""

    def __init__(self, bus: Client, name: str) -> None:
        self.bus, self.name = bus, name

    async def script(self, *answers: ScriptedAnswer) -> None:
        await self.bus.actor(self.name).ask(ExtendScript(answers))

    async def release(self, event: str) -> None:
        await self.bus.actor(self.name).ask(ReleaseScript(event))

    async def requests(self) -> list[Any]:
        return [call.request for call in (await self.bus.actor(self.name).ask(GetScriptedCalls())).calls]


@pytest.fixture
async def model(daemon: Daemon) -> AsyncIterator[Model]:
    async with daemon.connect() as bus:
        ref = await bus.spawn("agent.scripted", msgspec.json.encode({"piece_characters": 7}).decode())
        yield Model(bus, ref.address)
        await bus.stop(ref.address)


@pytest.fixture
def chats(tmp_path: Path) -> History:
    """Where the app of this test keeps its chats."""
    return History(tmp_path / "callboard-data" / "chats")


async def ask(it: Running, eventually: Eventually, text: str) -> None:
    """Type and send, and wait for the end of the answer."""
    it.page.prompt.text = text
    await it.pilot.press("enter")
    await eventually(lambda: any(turn.text == text for turn in it.page.conversation.path()))
    await eventually(lambda: not it.page.answering)
    await it.pilot.pause()


def turns(it: Running) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in it.page.conversation.path()]


def clipboard(it: Running) -> str:
    return it.app.clipboard


async def test_a_question_is_answered_kept_and_there_again_in_another_window(
    open_app: OpenApp, model: Model, eventually: Eventually, chats: History, picture: Picture
) -> None:
    await model.script(ScriptedAnswer(text=CODE), ScriptedAnswer(text="Gladly."))
    async with open_app("chat", size=(80, 24)) as it:
        await ask(it, eventually, "Show me a program.")
        await ask(it, eventually, "Thanks, [b]again[/b]?")
        assert turns(it) == [
            ("user", "Show me a program."),
            ("assistant", CODE),
            ("user", "Thanks, [b]again[/b]?"),
            ("assistant", "Gladly."),
        ]
        await eventually(lambda: "print('hello')" in it.screen_text() and "**" not in it.screen_text())
        assert "[b]again[/b]" in it.screen_text()
    requests = await model.requests()
    assert [message.content for message in requests[1].messages] == [
        "Show me a program.",
        CODE,
        "Thanks, [b]again[/b]?",
    ]
    assert requests[0].session == requests[1].session != ""
    async with open_app("chat", size=(80, 24)) as it:
        await eventually(lambda: len(it.page.conversations) == 1)
        await it.pilot.press("ctrl+b", "down", "enter")
        await eventually(lambda: len(turns(it)) == 4)


async def test_a_failed_question_comes_back_to_the_prompt(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(error="model.request", text="it is too long"))
    async with open_app("chat") as it:
        it.page.prompt.text = "A question with care"
        await it.pilot.press("enter")
        await eventually(lambda: "it is too long" in it.screen_text())
        await eventually(lambda: it.page.prompt.text == "A question with care")
        assert turns(it) == []


async def test_an_empty_answer_is_said_and_the_question_comes_back(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(text=""))
    async with open_app("chat") as it:
        it.page.prompt.text = "Say nothing"
        await it.pilot.press("enter")
        await eventually(lambda: "the answer was empty" in it.screen_text())
        await eventually(lambda: it.page.prompt.text == "Say nothing")
        assert turns(it) == []


async def test_escape_stops_an_answer_and_what_came_of_it_stays(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(pieces=("Begun ", "never shown"), hold="never"))
    async with open_app("chat") as it:
        it.page.prompt.text = "Tell me"
        await it.pilot.press("enter")
        await eventually(lambda: "Begun" in it.screen_text())
        await it.pilot.press("escape")
        await eventually(lambda: not it.page.answering)
        assert turns(it) == [("user", "Tell me"), ("assistant", "Begun ")]
        await eventually(lambda: "stopped" in it.screen_text())


async def test_an_answer_goes_on_while_another_page_is_shown(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(pieces=("One. ", "Two."), hold="go"))
    async with open_app("chat") as it:
        it.page.prompt.text = "Count"
        await it.pilot.press("enter")
        await eventually(lambda: "One." in it.screen_text())
        chat = it.page
        await it.pilot.press("f4")
        await eventually(lambda: it.app.current_mode == "bus")
        await model.release("go")
        await eventually(lambda: not chat.answering)
        await it.pilot.press("f2")
        await eventually(lambda: "One. Two." in it.screen_text())


async def test_editing_and_asking_again_make_branches_to_go_between(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(*(ScriptedAnswer(text=text) for text in ("first", "second", "third")))
    async with open_app("chat") as it:
        await ask(it, eventually, "Say a")
        await it.pilot.press("alt+r")
        await eventually(lambda: turns(it)[-1:] == [("assistant", "second")])
        await it.pilot.press("alt+e")
        assert it.page.prompt.text == "Say a"
        await ask(it, eventually, "Say b")
        assert turns(it) == [("user", "Say b"), ("assistant", "third")]
        await it.pilot.press("alt+left")
        await eventually(lambda: turns(it) == [("user", "Say a"), ("assistant", "second")])
        await it.pilot.press("alt+left")
        await eventually(lambda: turns(it) == [("user", "Say a"), ("assistant", "first")])
        await eventually(lambda: "‹1/2›" in it.screen_text())


async def test_code_and_answers_are_copied(open_app: OpenApp, model: Model, eventually: Eventually) -> None:
    await model.script(ScriptedAnswer(text=CODE))
    async with open_app("chat") as it:
        await ask(it, eventually, "Show me")
        await it.pilot.press("alt+c")
        await eventually(lambda: clipboard(it) == "print('hello')")
        await it.pilot.press("alt+a")
        await eventually(lambda: clipboard(it) == CODE)
        await it.pilot.click("CodeFence")
        await eventually(lambda: clipboard(it).strip() == "print('hello')")


async def test_slash_commands_complete_and_act(
    open_app: OpenApp, model: Model, eventually: Eventually, tmp_path: Path
) -> None:
    await model.script(ScriptedAnswer(text="ok", times=0))
    (tmp_path / "notes.txt").write_text("the notes")
    async with open_app("chat") as it:
        await it.pilot.press(*"/ren")
        await eventually(lambda: "/rename" in it.screen_text())
        await it.pilot.press("tab", *"My title", "enter")
        await eventually(lambda: it.page.conversation.title == "My title")
        await it.pilot.press(*"/set temperature 0.25", "enter")
        await eventually(lambda: it.page.conversation.options.temperature == 0.25)
        it.page.prompt.text = f"/attach {tmp_path}/notes.txt"
        await it.pilot.press("enter")
        await eventually(lambda: len(it.page.attached) == 1)
        await ask(it, eventually, "Read this")
        request = (await model.requests())[-1]
        assert "notes.txt:\n```\nthe notes\n```\n\nRead this" in request.messages[-1].content
        assert request.temperature == 0.25
        it.page.prompt.text = "/export " + str(tmp_path / "out.md")
        await it.pilot.press("enter")
        await eventually((tmp_path / "out.md").exists)
        assert "# My title" in (tmp_path / "out.md").read_text()
        for line, complaint in [
            ("/reame x", "did you mean /rename"),
            ("/set temperature hot", "temperature is a number"),
            (f"/attach {tmp_path}/nothing", "there is no file"),
            ("/rename ", "wants TITLE"),
        ]:
            it.page.prompt.text = line
            it.page.prompt.hide_completions()
            await it.pilot.press("enter")
            await eventually(lambda complaint=complaint: complaint in it.screen_text())
            await eventually(lambda line=line: it.page.prompt.text == line)
            it.page.prompt.text = ""


async def test_sessions_are_searched_renamed_forked_and_deleted(
    open_app: OpenApp, eventually: Eventually, chats: History
) -> None:
    for name in ("apples", "pears"):
        conversation = Conversation.new()
        conversation.add("user", f"About {name}")
        conversation.add("assistant", f"All of {name}")
        chats.save(conversation)
    async with open_app("chat") as it:
        await eventually(lambda: len(it.page.conversations) == 2)
        await it.pilot.press("ctrl+b", "slash", *"all apples")
        await it.pilot.press("enter")
        await eventually(lambda: it.page.conversation.title == "About apples")
        await it.pilot.press("ctrl+b", "f")
        await eventually(lambda: it.page.conversation.title == "About apples (fork)")
        await eventually(lambda: len(chats.load_all()[0]) == 3)
        await it.pilot.press("ctrl+b", "d")
        await eventually(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("y")
        await eventually(lambda: len(chats.load_all()[0]) == 2)
        assert {one.title for one in chats.load_all()[0]} == {"About apples", "About pears"}


async def test_a_chat_is_renamed_in_the_list(open_app: OpenApp, eventually: Eventually, chats: History) -> None:
    conversation = Conversation.new()
    conversation.add("user", "About apples")
    chats.save(conversation)
    async with open_app("chat") as it:
        await eventually(lambda: len(it.page.conversations) == 1)
        await it.pilot.press("ctrl+b", "down", "r")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press("end", *" and pears", "enter")
        await eventually(lambda: chats.load_all()[0][0].title == "About apples and pears")
        await eventually(lambda: "About apples and pears" in it.screen_text())


async def test_who_answers_is_picked_from_those_that_are_there(
    open_app: OpenApp, daemon: Daemon, model: Model, eventually: Eventually
) -> None:
    async with daemon.connect() as bus:
        other = Model(bus, (await bus.spawn("agent.scripted")).address)
        await other.script(ScriptedAnswer(text="It is me."))
        async with open_app("chat") as it:
            await it.pilot.press("ctrl+l")
            await eventually(lambda: isinstance(it.app.screen, Choose))
            places = [who.where for who in it.page.answerers]
            assert {model.name, other.name} <= set(places)
            await it.pilot.press("home", *["down"] * places.index(other.name), "enter")
            await eventually(lambda: it.page.conversation.where == other.name)
            await ask(it, eventually, "Who are you?")
            assert turns(it)[-1] == ("assistant", "It is me.")
            assert other.name in it.screen_text()
        await bus.stop(other.name)


async def test_the_options_beside_a_chat_are_what_answers_are_drawn_with(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(text="ok"))
    async with open_app("chat") as it:
        await it.pilot.press("ctrl+o")
        panel = it.page.query_one(OptionsPanel)
        await eventually(lambda: panel.display and panel.query_one("#option-temperature").has_focus)
        await it.pilot.press("ctrl+u", *"hot")
        await eventually(lambda: "temperature is a number" in it.screen_text())
        await it.pilot.press("ctrl+u", *"0.75")
        await eventually(lambda: it.page.conversation.options.temperature == 0.75)
        await it.pilot.press("ctrl+o")
        await eventually(lambda: not panel.display and it.page.prompt.area.has_focus)
        await ask(it, eventually, "Say ok")
        assert (await model.requests())[-1].temperature == 0.75


async def test_who_reads_further_up_stays_there_while_the_answer_comes(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    first = "\n\n".join(f"line {n}" for n in range(60))
    await model.script(ScriptedAnswer(pieces=(first, "\n\n", *(f"more {n}\n\n" for n in range(60))), hold="go"))
    async with open_app("chat", size=(80, 24)) as it:
        it.page.prompt.text = "Count"
        await it.pilot.press("enter")
        await eventually(lambda: "line 59" in it.screen_text())
        transcript = it.page.transcript
        await it.pilot.press("pageup", "pageup")
        await eventually(lambda: not transcript.follows and "line 59" not in it.screen_text())
        await it.pilot.pause()
        before, seen = transcript.scroll_y, re.findall(r"line \d+", it.screen_text())
        await model.release("go")
        await eventually(lambda: not it.page.answering)
        await it.pilot.pause()
        assert transcript.max_scroll_y > before + 60
        assert transcript.scroll_y == before
        assert re.findall(r"line \d+", it.screen_text()) == seen != []
        await it.pilot.press("alt+t", "G")
        await eventually(lambda: "more 59" in it.screen_text())


async def test_prompts_come_back_with_the_arrows(open_app: OpenApp, model: Model, eventually: Eventually) -> None:
    await model.script(ScriptedAnswer(text="ok", times=0, match=Match.ANY))
    async with open_app("chat") as it:
        await ask(it, eventually, "one")
        await ask(it, eventually, "two")
        await it.pilot.press(*"draft", "up")
        assert it.page.prompt.text == "two"
        await it.pilot.press("up")
        assert it.page.prompt.text == "one"
        await it.pilot.press("down", "down")
        assert it.page.prompt.text == "draft"


async def test_what_a_model_writes_never_drives_the_terminal(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    evil = "\x1b]52;c;" + base64.b64encode(b"stolen").decode() + "\x07 \x1b[2J 家族 e\u0301 \u202ereversed"
    await model.script(ScriptedAnswer(text=evil))
    async with open_app("chat") as it:
        await ask(it, eventually, "Be evil")
        await eventually(lambda: "␛[2J 家族" in it.screen_text() and "⟨U+202E⟩reversed" in it.screen_text())
        assert "\x1b" not in it.screen_text()
        assert turns(it)[-1] == ("assistant", evil)  # the history has it as it came


async def test_keys_that_come_fast_after_tab_and_enter_are_not_lost(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(text="ok", times=0))
    async with open_app("chat") as it:
        for key in ["slash", *"ren", "tab", *"Title", "enter", *"next", "enter", *"after"]:
            it.app.post_message(events.Key(key, "/" if key == "slash" else key if len(key) == 1 else None))
        await eventually(lambda: it.page.conversation.title == "Title" and len(turns(it)) == 2)
        await eventually(lambda: it.page.prompt.text == "after")
        await eventually(lambda: turns(it) == [("user", "next"), ("assistant", "ok")])


async def test_in_a_terminal_of_five_lines_one_asks_and_reads(
    open_app: OpenApp, model: Model, eventually: Eventually
) -> None:
    await model.script(ScriptedAnswer(text="One two three four five six seven eight nine ten eleven."))
    async with open_app("chat", size=(20, 5)) as it:
        await it.pilot.press(*"count up")
        await eventually(lambda: "count up" in it.screen_text())
        await it.pilot.press("enter")
        await eventually(lambda: "eleven." in it.screen_text() and not it.page.answering)
        await it.pilot.press(*"more")
        await eventually(lambda: "more" in it.screen_text() and "eleven." in it.screen_text())
        await it.pilot.press("alt+t", "home")
        await eventually(lambda: "You" in it.screen_text())


async def test_an_answer_of_many_tokens_a_second_is_drawn_ten_times_a_second(
    open_app: OpenApp, daemon: Daemon, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    drawn: list[float] = []
    feed = Transcript.feed

    async def counted(self: Transcript, id: str, text: str) -> None:
        drawn.append(loop.time())
        await feed(self, id, text)

    monkeypatch.setattr(Transcript, "feed", counted)
    script = {"answers": [ScriptedAnswer(pieces=("word ",) * 900)], "pieces_per_s": 1000}
    async with daemon.connect() as bus:
        await bus.spawn("agent.scripted", msgspec.json.encode(script).decode(), name="hasty")
        try:
            async with open_app("chat") as it:
                began = loop.time()
                await ask(it, eventually, "Go on")
                seconds = loop.time() - began
                assert it.page.conversation.path()[-1].text == "word " * 900
        finally:
            await bus.stop("hasty")
    assert 2 <= len(drawn) <= 10 * seconds + 1  # and once when it has ended
