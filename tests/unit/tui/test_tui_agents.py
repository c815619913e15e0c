"""The pages of agents and approvals on real runs with a scripted model and real tools."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from textual.widgets import Static, TabbedContent
from tui_support import Daemon, Eventually, OpenApp, Running
from work_company import SCRIPT, at_work, begin

from callboard.runtime.client import Client
from callboard.runtime.errors import Malformed
from callboard.schemas.agent import AttachRun, Control, ControlRun, GetRun, ListApprovals, RunInfo
from callboard.schemas.agent_log import ApprovalAsked, ApprovalGiven, ToolCalled
from callboard.schemas.agent_parts import RunStatus, Verdict
from callboard.schemas.question import Answered, AskQuestion, Outcome
from callboard.schemas.scripted import ReleaseScript
from callboard.tui.app import CallboardApp
from callboard.tui.screens.run_form import RunForm
from callboard.tui.session import Session
from callboard.tui.widgets.dialog import AskText, Confirm
from callboard.tui.widgets.fill_form import FillForm
from callboard.tui.widgets.live_table import LiveTable
from callboard.tui.widgets.run_tree import RunTree
from callboard.tui.widgets.schema_form import SchemaForm

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="module")
def company(daemon: Daemon, notes: Path) -> Any:
    with at_work(daemon, notes):
        yield


@pytest.fixture
async def bus(company: None, daemon: Daemon, notes: Path) -> AsyncIterator[Client]:
    (notes / "plan.txt").write_text("first: milk\nthen: tea\n")
    async with daemon.connect() as bus:
        yield bus


def table(it: Running) -> LiveTable:
    return it.page.query_one(LiveTable)


def detail(it: Running) -> str:
    return str(it.page.query_one("#detail", Static).content)


async def choose(it: Running, eventually: Eventually, task: str) -> None:
    await eventually(lambda: any(info.task == task for info in it.page.runs.values()))
    run = next(run for run, info in it.page.runs.items() if info.task == task)
    table(it).select(run)
    await eventually(lambda: it.page.chosen == run and run in it.page.stories)


async def choose_hello(it: Running, eventually: Eventually) -> None:
    """Until it is drawn, the run that was chosen before is seen, which has finished too."""
    await choose(it, eventually, "say hello")
    await eventually(lambda: "~ I repeat it." in it.screen_text() and "■ finished" in it.screen_text())


async def over(bus: Client, run: str) -> RunInfo:
    return await bus.actor("agents").ask(AttachRun(run), timeout=30)


async def test_a_run_is_shown_as_a_tree_with_what_each_step_got(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("agents") as it:
        await choose_hello(it, eventually)
        text = it.screen_text()
        assert "desk.echo" in text
        assert "tok" in text
        tree = it.page.query_one(RunTree)
        tree.focus()
        await it.pilot.press("home", "down", "down", "down")
        await eventually(lambda: "arguments" in detail(it) and "hello" in detail(it))


async def test_a_plan_is_drawn_with_how_far_each_step_is(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("agents") as it:
        await choose(it, eventually, "Compare Graz and Linz")
        it.page.query_one(TabbedContent).active = "tab-plan"
        await eventually(lambda: "✓ E1 desk.echo ─┬" in it.screen_text())
        assert "✓ E3 desk.echo" in it.screen_text()
        assert "Compare them." in it.screen_text()


async def test_a_run_is_replayed_event_by_event_and_forked_from_there(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("agents") as it:
        await choose_hello(it, eventually)
        story = it.page.stories[it.page.chosen]
        called = 1 + next(n for n, event in enumerate(story.events) if isinstance(event, ToolCalled))
        for _ in range(len(story.events) - called):
            await it.pilot.press("left_square_bracket")
        await eventually(lambda: f"replay: event {called} of" in it.screen_text())
        assert "■ finished" not in it.screen_text()
        assert "● " in it.screen_text()
        await it.pilot.press("f")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press("enter")
        await eventually(lambda: any(info.forked_from for info in it.page.runs.values()))
        fork = next(info for info in it.page.runs.values() if info.forked_from)
        assert fork.forked_at == called
        assert (await over(bus, fork.run)).answer == "hello, 7 times"


async def test_a_run_is_started_paused_redirected_and_ended(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("agents") as it:
        await it.pilot.press("n")
        await eventually(lambda: isinstance(it.app.screen, RunForm))
        form = it.app.screen.query_one(SchemaForm)
        form.set_text("task", "think long")
        form.set_text("model", SCRIPT)
        await it.pilot.press("ctrl+s")
        page = it.page
        await eventually(lambda: page.chosen in page.runs and page.runs[page.chosen].task == "think long")
        run = page.chosen
        await it.pilot.press("p")
        await eventually(lambda: page.runs[run].status is RunStatus.PAUSED)
        await it.pilot.press("p")
        await eventually(lambda: page.runs[run].status is RunStatus.RUNNING)
        await it.pilot.press("i")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press(*"be quick", "enter")
        await eventually(lambda: "be quick" in it.screen_text())
        await it.pilot.press("x")
        await eventually(lambda: isinstance(it.app.screen, Confirm))
        await it.pilot.press("y")
        await eventually(lambda: page.runs[run].status is RunStatus.CANCELLED)
        await bus.actor(SCRIPT).ask(ReleaseScript("thought"))


async def test_events_that_nobody_understands_are_said_once(
    bus: Client, open_app: OpenApp, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a newer version of the agents."""
    asked: list[str] = []
    said: list[str] = []

    async def newer(request: AttachRun) -> AsyncIterator[Any]:
        asked.append(request.run)
        raise Malformed("no type of event is called 'dreamt'")
        yield

    monkeypatch.setattr(Session, "stream", lambda self, address, request: newer(request))
    monkeypatch.setattr(CallboardApp, "notify", lambda self, text, **how: said.append(text))
    async with open_app("agents") as it:
        await eventually(lambda: len(asked) >= 4)  # the list is looked at each second
        assert len(set(asked)) == 1
        assert len([text for text in said if "dreamt" in text]) == 1
        assert "dreamt" in it.screen_text()


# Approvals


async def waiting_run(it: Running, bus: Client, eventually: Eventually, task: str = "write my shopping list") -> str:
    """A run that waits for a person, shown on the page of approvals."""
    info = await begin(bus, task)
    await eventually(lambda: any(getattr(one, "run", "") == info.run for one in it.page.waits.values()))
    await eventually(lambda: len(it.page.query_one(LiveTable).rows_shown) == len(it.page.waits))
    it.page.query_one(LiveTable).select(next(id for id, one in it.page.waits.items() if one.run == info.run))
    await eventually(lambda: it.page.chosen is not None and it.page.chosen.run == info.run)
    return info.run


async def test_what_will_run_is_shown_in_whole_with_what_it_would_change(
    bus: Client, open_app: OpenApp, eventually: Eventually, notes: Path
) -> None:
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually)
        await eventually(lambda: "-then: tea" in it.screen_text())
        await eventually(lambda: "on node desk" in it.screen_text())
        for part in ("desk.write", "write my shopping list", "plan.txt", "-then: tea", "which is not read-only", run):
            assert part in it.screen_text()
        await eventually(lambda: "Approvals 1!" in it.screen_text().replace("  ", " "))
        await it.pilot.press("y")
        assert (await over(bus, run)).answer == "written"
        assert (notes / "plan.txt").read_text() == "first: milk\nthen: bread\nlast: tea\n"
        await eventually(lambda: "nothing waits for you" in it.screen_text() and "1!" not in it.screen_text())


async def test_what_waits_is_said_on_every_page_and_to_the_terminal(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("tools") as it:
        rung: list[str] = []
        it.app.bell = lambda: rung.append("bell")  # pyright: ignore[reportAttributeAccessIssue]
        info = await begin(bus, "write my shopping list")
        await eventually(lambda: "1!" in it.screen_text() and bool(rung))
        assert rung == ["bell"]
        await eventually(lambda: any("desk.write" in note.message for note in it.app._notifications))
        assert not any("milk" in note.message for note in it.app._notifications)
        await it.pilot.press("f9")
        await eventually(lambda: it.app.page is not None and it.app.page.NAME == "approvals" and it.page.is_open)
        await eventually(lambda: it.page.chosen is not None)
        await it.pilot.press("x")
        assert (await over(bus, info.run)).status is RunStatus.CANCELLED
        await eventually(lambda: "1!" not in it.screen_text())


async def test_arguments_are_edited_in_a_form_of_the_tools_schema(
    bus: Client, open_app: OpenApp, eventually: Eventually, notes: Path
) -> None:
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually)
        await it.pilot.press("e")
        await eventually(lambda: isinstance(it.app.screen, FillForm))
        form = it.app.screen.query_one(SchemaForm)
        assert form.text_of("content") == "first: milk\nthen: bread\nlast: tea\n"
        form.set_text("content", "only: water\n")
        await it.pilot.press("ctrl+s")
        assert (await over(bus, run)).answer == "written"
        assert (notes / "plan.txt").read_text() == "only: water\n"


async def test_a_call_is_refused_with_feedback_that_the_agent_heeds(
    bus: Client, open_app: OpenApp, eventually: Eventually, notes: Path
) -> None:
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually)
        await it.pilot.press("f")
        await eventually(lambda: isinstance(it.app.screen, AskText))
        await it.pilot.press(*"use a pencil", "enter")
        assert (await over(bus, run)).answer == "nothing was written"
        assert "tea" in (notes / "plan.txt").read_text()


async def test_a_call_is_allowed_for_the_run_and_whatever_its_arguments(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually)
        await it.pilot.press("w")
        await eventually(lambda: "whatever its arguments" in it.screen_text())
        await it.pilot.press("r")
        await over(bus, run)
        async with bus.actor("agents").stream(AttachRun(run, 0, follow=False)) as entries:
            given = [entry.event async for entry in entries if isinstance(entry.event, ApprovalGiven)]
        assert [(one.verdict, one.scope.value, one.pattern) for one in given] == [(Verdict.APPROVE, "run", "*")]
        assert not (await bus.actor("agents").ask(ListApprovals(run))).approvals
        assert (await bus.actor("agents").ask(GetRun(run))).status is RunStatus.FINISHED


async def test_a_call_is_denied(bus: Client, open_app: OpenApp, eventually: Eventually, notes: Path) -> None:
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually)
        await it.pilot.press("d")
        await eventually(lambda: "deny: desk.write" in it.screen_text())
        await bus.actor("agents").ask(ControlRun(run, Control.CANCEL))  # the model would ask for it again
        await over(bus, run)
        async with bus.actor("agents").stream(AttachRun(run, 0, follow=False)) as entries:
            given = [entry.event async for entry in entries if isinstance(entry.event, ApprovalGiven)]
        assert given[0].verdict is Verdict.DENY
        assert "tea" in (notes / "plan.txt").read_text()


async def test_what_is_allowed_always_is_not_asked_again(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually, "keep my diary")
        await it.pilot.press("A")
        assert (await over(bus, run)).answer == "noted"
        again = await begin(bus, "keep my diary")
        assert (await over(bus, again.run)).answer == "noted"
        async with bus.actor("agents").stream(AttachRun(again.run, 0, follow=False)) as entries:
            assert not [entry async for entry in entries if isinstance(entry.event, ApprovalAsked)]


async def test_two_apps_on_one_company_see_the_same(bus: Client, open_app: OpenApp, eventually: Eventually) -> None:
    async with open_app("approvals") as one, open_app("approvals") as other:
        run = await waiting_run(one, bus, eventually)
        await eventually(lambda: "desk.write" in other.screen_text() and bool(other.app.badges["approvals"]))
        await other.pilot.press("f8")
        await eventually(lambda: other.app.current_mode == "agents" and run in other.page.runs)
        await one.pilot.press("x")
        await eventually(lambda: other.page.runs[run].status is RunStatus.CANCELLED)
        await eventually(lambda: f"cancelled  react  {run}" in other.screen_text())
        await eventually(lambda: not other.app.badges["approvals"] and not one.app.badges["approvals"])


async def test_a_question_of_the_board_is_answered_in_a_form_of_its_schema(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    answers: list[Answered] = []

    async def ask() -> None:
        schema = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
        question = AskQuestion("Which city?", "a tester", kind="elicitation", schema=schema)
        answers.append(await bus.actor("questions").ask(question, timeout=60))

    await bus.spawn("question.board", name="questions")
    async with open_app("approvals") as it, anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await eventually(lambda: "Which city?" in it.screen_text())
        await eventually(lambda: it.page.chosen is not None)
        await it.pilot.press("y")
        await eventually(lambda: isinstance(it.app.screen, FillForm))
        await it.pilot.press(*"Graz", "enter")
    assert (answers[0].outcome, answers[0].value) == (Outcome.ACCEPTED, '{"city": "Graz"}')


@pytest.mark.parametrize("page", ["agents", "approvals"])
async def test_the_smallest_terminal_shows_the_list(bus: Client, open_app: OpenApp, page: str) -> None:
    async with open_app(page, size=(20, 5)) as it:
        await it.pilot.press("down", "tab")
        assert it.screen_text()
