"""What waits for people: calls of agents that the policy asks about, their questions, and questions of the board."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from ...runtime.errors import CallboardError
from ...schemas.agent import AnswerApproval, Approval, GetRun
from ...schemas.agent_parts import ApprovalKind, Scope, Verdict
from ...schemas.question import AnswerQuestion, Outcome, Question
from ...schemas.tool import CallTool, ListTools, OpenTool
from ..copying import Copied, text_of
from ..file_changes import changes_in, reader_of, text_in
from ..person import whoami
from ..session import Session
from ..styles import beside
from ..tool_call import json_object
from ..train_view import duration
from ..waiting import AGENTS, QUESTIONS
from ..widgets.approval_detail import ApprovalDetail
from ..widgets.ask_text import AskText
from ..widgets.fill_form import FillForm
from ..widgets.live_table import Cell, Column, LiveTable
from ..widgets.safe_text import plain_line
from .base import Page

READ_TIMEOUT_S = 10.0
# Present contents of a file are looked up where they are not larger than this.
MOST_PRESENT = 200_000


class ApprovalsPage(Page):
    HELP = """
## Approvals

What waits for a person. `y` allows it once, `r` for this run, `A` always, `e` with other arguments; `d` denies it,
`f` says why, `x` ends the run. `c` copies what is asked.
"""
    NAME = "approvals"
    TITLE = "Approvals"
    KEY = "f9"
    DEFAULT_CSS = beside(__file__)
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "allow('once')", "Allow"),
        Binding("r", "allow('run')", "This run", id="approvals.allow_run"),
        Binding("A,upper_a", "allow('forever')", "Always", key_display="A", id="approvals.allow_always"),
        Binding("w", "widen", "Any args"),
        Binding("e", "edit", "Edit"),
        Binding("d", "deny", "Deny"),
        Binding("f", "feedback", "Feedback"),
        Binding("x", "stop", "Stop run"),
        Binding("c", "copy", "Copy", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[str, str] = {}
        self._present: dict[str, dict[str, str]] = {}
        self._node_of: dict[str, str] = {}
        self.any_arguments = False
        """Whether an answer beyond once is for the tool whatever its arguments, or for these alone."""

    def body(self) -> ComposeResult:
        with Container(id="waiting"):
            yield LiveTable(
                [Column("asked", right=True, show=_ago), Column("what"), Column("kind"), Column("from")],
                title="waiting",
                id="list",
            )
            yield ApprovalDetail()

    async def opened(self, session: Session) -> None:
        self.query_one(LiveTable).focus()
        assert self.board.waiting is not None
        if self._changed not in self.board.waiting.on_change:
            self.board.waiting.on_change.append(self._changed)
        self.board.waiting.look()
        self._changed()

    async def closed(self) -> None:
        if self.board.waiting is not None and self._changed in self.board.waiting.on_change:
            self.board.waiting.on_change.remove(self._changed)

    # What is shown

    @property
    def waits(self) -> dict[str, Approval | Question]:
        waiting = self.board.waiting
        found = (*waiting.approvals, *waiting.questions) if waiting is not None else ()
        return {one.id: one for one in found}

    @property
    def chosen(self) -> Approval | Question | None:
        return self.waits.get(self.query_one(LiveTable).selected_key)

    def _changed(self) -> None:
        self.query_one(LiveTable).show({id: _row(one) for id, one in self.waits.items()})
        self._show_chosen()

    @on(LiveTable.Chosen)
    def _on_chosen(self, event: LiveTable.Chosen) -> None:
        event.stop()
        self.any_arguments = False
        self._show_chosen()

    def action_widen(self) -> None:
        self.any_arguments = not self.any_arguments
        self._show_chosen()

    def _show_chosen(self) -> None:
        one = self.chosen
        task = self._tasks.get(one.run, "") if isinstance(one, Approval) else ""
        present = self._present.get(one.id) if one is not None else None
        node = self._node_of.get(one.id, "") if one is not None else ""
        self.query_one(ApprovalDetail).show(
            one, task=task, node=node, present=present, any_arguments=self.any_arguments
        )
        if isinstance(one, Approval) and one.id not in self._present:
            self._present[one.id] = {}
            self.run_worker(self._look_up(one), group="look")

    async def _look_up(self, one: Approval) -> None:
        """The run's task, and what is now in the files that a call would write anew: a tool of the same set that only
        reads is asked."""
        try:
            self._tasks[one.run] = (await self.session.ask(AGENTS, GetRun(one.run))).task
            if one.address:
                root = one.address.partition(".")[0]
                seen = {info.address: info.node for info in await self.session.client.actors(root)}
                self._node_of[one.id] = seen.get(one.address, seen.get(root, ""))
            whole = [change for change in changes_in(one.arguments) if change.old is None and not change.patch]
            if whole and one.tool:
                tools = (await self.session.ask("tools", ListTools(names=(f"{one.tool.rpartition('.')[0]}.*",)))).tools
                if (reader := reader_of(one.tool, tools)) is not None:
                    for change in whole:
                        self._present[one.id] |= {change.path: await self._read(*reader, change.path)}
        except CallboardError as error:  # what is known is shown; what would be replaced is not
            self.say(f"what would be replaced cannot be read: {error}")
        self._show_chosen()

    async def _read(self, info: Any, name: str, path: str) -> str:
        tool = await self.session.ask("tools", OpenTool(info.name), READ_TIMEOUT_S)
        call = CallTool(json.dumps({name: path}))
        result = await self.session.ask(tool.address, call, READ_TIMEOUT_S)
        return text_in(result.value, result.text)[:MOST_PRESENT]

    def copied(self) -> Copied | None:
        return Copied(text_of(self.query_one(ApprovalDetail)), "what is asked") if self.chosen is not None else None

    # Answers

    def action_allow(self, scope: str) -> None:
        match self.chosen:
            case Approval(kind=ApprovalKind.QUESTION) as one:
                self.run(self._reply(one))
            case Approval() as one:
                pattern = "*" if self.any_arguments and scope != Scope.ONCE else ""
                self._answer(one, Verdict.APPROVE, scope=Scope(scope), pattern=pattern)
            case Question() as one if one.proposal or one.schema in ("", "{}"):
                self.run(self._end(one, Outcome.ACCEPTED, one.proposal or "true"))
            case Question() as one:
                self.run(self._fill(one))
            case None:
                pass

    def action_edit(self) -> None:
        match self.chosen:
            case Approval(kind=ApprovalKind.QUESTION) as one:
                self.run(self._reply(one))
            case Approval() as one:
                self.run(self._edit(one))
            case Question() as one:
                self.run(self._fill(one))
            case None:
                pass

    def action_deny(self) -> None:
        match self.chosen:
            case Approval() as one:
                self._answer(one, Verdict.DENY)
            case Question() as one:
                self.run(self._end(one, Outcome.REFUSED))
            case None:
                pass

    def action_feedback(self) -> None:
        match self.chosen:
            case Approval() as one:
                self.run(self._feedback(one))
            case Question() as one:
                self.run(self._refuse(one))
            case None:
                pass

    def action_stop(self) -> None:
        """Deny it and end its run; put a question of the board away without deciding."""
        match self.chosen:
            case Approval() as one:
                self._answer(one, Verdict.DENY, stop=True)
            case Question() as one:
                self.run(self._end(one, Outcome.CANCELLED))
            case None:
                pass

    def _answer(self, one: Approval, verdict: Verdict, **fields: Any) -> None:
        answer = AnswerApproval(id=one.id, verdict=verdict, by=whoami(), **fields)
        self.run(self._send(answer, one.tool or one.text))

    async def _send(self, answer: AnswerApproval, what: str) -> None:
        done = await self.session.ask(AGENTS, answer)
        scope = "" if answer.scope is Scope.ONCE else f" for {answer.scope.value}"
        self.say(f"{done.verdict.value}{scope}: {what}" + (" (as before)" if done.repeated else ""))
        self._look()

    def _look(self) -> None:
        if self.board.waiting is not None:
            self.board.waiting.look()

    async def _reply(self, one: Approval) -> None:
        text = await self.app.push_screen_wait(AskText(one.text or "Your answer"))
        if text is not None:
            answer = AnswerApproval(id=one.id, verdict=Verdict.APPROVE, text=text, by=whoami())
            await self._send(answer, one.text)

    async def _feedback(self, one: Approval) -> None:
        text = await self.app.push_screen_wait(AskText("It is not run. What is the agent to heed?"))
        if text:
            await self._send(AnswerApproval(id=one.id, verdict=Verdict.FEEDBACK, text=text, by=whoami()), one.tool)

    async def _edit(self, one: Approval) -> None:
        given = json_object(one.arguments)
        tools = (await self.session.ask("tools", ListTools(names=(one.tool,)))).tools if one.tool else ()
        schema = json_object(tools[0].input_schema) if tools else {}
        form = FillForm(f"{one.tool}: run it with", _whole(schema, given), given, yes="Allow once")
        values = await self.app.push_screen_wait(form)
        if values is not None:
            arguments = json.dumps(values, ensure_ascii=False)
            answer = AnswerApproval(id=one.id, verdict=Verdict.APPROVE, arguments=arguments, by=whoami())
            await self._send(answer, one.tool)

    # Questions of the board

    async def _fill(self, one: Question) -> None:
        schema = json_object(one.schema)
        is_object = schema.get("type") == "object" or "properties" in schema
        given = msgspec.json.decode(one.proposal) if one.proposal else None
        if not is_object:
            schema = {"properties": {"value": schema or {"type": "string"}}, "required": ["value"]}
            given = {"value": given}
        values = await self.app.push_screen_wait(FillForm(one.text, schema, given or {}, yes="Answer"))
        if values is not None:
            await self._end(one, Outcome.ACCEPTED, json.dumps(values if is_object else values["value"]))

    async def _refuse(self, one: Question) -> None:
        note = await self.app.push_screen_wait(AskText("Refused. Why?"))
        if note is not None:
            await self._end(one, Outcome.REFUSED, note=note)

    async def _end(self, one: Question, outcome: Outcome, value: str = "", note: str = "") -> None:
        answered = await self.session.ask(QUESTIONS, AnswerQuestion(one.id, outcome, value, note, whoami()))
        self.say(f"{answered.outcome.value}: {one.text}")
        self._look()


def _row(one: Approval | Question) -> list[Cell]:
    if isinstance(one, Question):
        return [one.asked, plain_line(one.text, limit=60), one.kind or "question", one.asker]
    what = one.text if one.kind is ApprovalKind.QUESTION else f"{one.tool} {one.arguments}"
    return [one.asked_at, plain_line(what, limit=60), one.kind.value, one.run]


def _ago(at: float) -> str:
    return duration(time.time() - at) if at else ""


def _whole(schema: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The tool's schema, with a field for what it does not name; a text of several lines gets several."""
    properties = dict(schema.get("properties", {}))
    for name, value in given.items():
        part = dict(properties.get(name, {"type": "string"} if isinstance(value, str) else {}))
        if isinstance(value, str) and ("\n" in value or len(value) > 60) and "enum" not in part:
            part["format"] = part.get("format", "textarea")
        properties[name] = part
    return {**schema, "properties": properties}
