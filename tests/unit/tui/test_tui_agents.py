"""The pages of agents and approvals on real runs with a scripted model and real tools."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from textual.widgets import Static, TabbedContent
from tui_support import Daemon, Eventually, OpenApp, Running
from work_company import SCRIPT, at_work, begin

from callboard.runtime.client import Client
from callboard.runtime.errors import Malformed, NameTaken
from callboard.schemas.agent import AgentRun, AttachRun, Control, ControlRun, GetRun, ListApprovals, RunInfo
from callboard.schemas.agent_log import ApprovalAsked, ApprovalGiven, ToolCalled
from callboard.schemas.agent_parts import AgentTool, Effect, PolicyRule, RunStatus, Verdict
from callboard.schemas.question import Answered, AskQuestion, CancelQuestion, ListQuestions, Outcome, PutQuestion
from callboard.schemas.scripted import ReleaseScript
from callboard.tui.app import CallboardApp
from callboard.tui.screens.run_form import RunForm
from callboard.tui.session import Session
from callboard.tui.widgets.ask_text import AskText
from callboard.tui.widgets.confirm import Confirm
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
        await it.pilot.press("c")
        assert it.app.clipboard.startswith("arguments\ntext hello")
        table(it).focus()
        await it.pilot.press("c")
        assert it.app.clipboard == "hello, 7 times"


async def test_a_plan_is_drawn_with_how_far_each_step_is(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("agents") as it:
        await choose(it, eventually, "Compare Graz and Linz")
        it.page.query_one(TabbedContent).active = "tab-plan"
        await eventually(lambda: "✓ E1 desk.echo ─┬" in it.screen_text())
        assert "✓ E3 desk.echo" in it.screen_text()
        assert "Compare them." in it.screen_text()
        await it.pilot.press("c")
        assert "E3  Compare them." in it.app.clipboard


async def test_a_run_that_a_run_started_is_seen_below_the_call_that_started_it(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    async with open_app("agents", size=(140, 40)) as it:
        helper = AgentTool(name="helper", description="It looks for you.")
        rules = (PolicyRule(effect=Effect.ALLOW, tool="helper"),)
        wanted = AgentRun(
            planner="react", task="delegate this", model_address=SCRIPT, agents=(helper,), rules=rules, detach=True
        )
        info = await bus.actor("agents").ask(wanted)
        assert (await over(bus, info.run)).answer == "they say nine"
        await choose(it, eventually, "delegate this")
        await eventually(lambda: "~ I see them." in it.screen_text() and "they say nine" in it.screen_text())
        tree = it.page.query_one(RunTree)
        (child,) = {run for run, _ in tree._places} - {info.run}
        inside = [node for (run, _), node in tree._places.items() if run == child]
        (above,) = {node.parent for node in inside}
        assert above is not None
        assert above.data is not None
        assert above.data[0] == info.run
        assert "helper" in str(above.label)
        tree.focus()
        tree.move_cursor(inside[0])
        await eventually(lambda: tree.chosen[0] == child and bool(detail(it)))


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
        await it.pilot.press("c")
        assert "desk.write" in it.app.clipboard
        assert "-then: tea" in it.app.clipboard
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


async def with_board(bus: Client) -> None:
    with contextlib.suppress(NameTaken):
        await bus.spawn("question.board", name="questions")


async def test_what_is_on_the_board_too_is_shown_once(bus: Client, open_app: OpenApp, eventually: Eventually) -> None:
    await with_board(bus)
    board = bus.actor("questions")
    async with open_app("approvals") as it:
        run = await waiting_run(it, bus, eventually)
        with anyio.fail_after(20):
            while not (own := [one for one in (await board.ask(ListQuestions())).questions if run in one.approval]):
                await anyio.sleep(0.01)
        other = (await board.ask(PutQuestion(AskQuestion("Which town?", "a tester", key=run)))).questions[0]
        await eventually(lambda: other.id in it.page.waits)  # so both lists were looked at since
        assert own[0].id not in it.page.waits
        assert own[0].approval in it.page.waits
        await board.ask(CancelQuestion(other.id))
        await bus.actor("agents").ask(ControlRun(run, Control.CANCEL))
        await eventually(lambda: own[0].approval not in it.page.waits)


async def test_a_question_of_the_board_is_answered_in_a_form_of_its_schema(
    bus: Client, open_app: OpenApp, eventually: Eventually
) -> None:
    answers: list[Answered] = []

    async def ask() -> None:
        schema = '{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}'
        question = AskQuestion("Which city?", "a tester", kind="elicitation", schema=schema)
        answers.append(await bus.actor("questions").ask(question, timeout=60))

    await with_board(bus)
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
