"""The actor `agents`: starts runs, and passes on what is said of one to the executor that has it.

It keeps nothing. A run's id begins with the number of its executor, so whoever has the id knows whom to ask.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated

import msgspec

from ...runtime.actor import Actor, handler
from ...runtime.errors import CallboardError
from ...runtime.event_log import list_logs
from ...runtime.log import log
from ...runtime.matching import did_you_mean
from ...runtime.placement import Here, Process
from ...runtime.refs import Ref
from ...runtime.settings import load_settings
from ...runtime.supervision import Supervision
from ...schemas.abilities import GetAbilities, ModelAbilities
from ...schemas.agent import (
    AgentRun,
    AnswerApproval,
    Answered,
    Approvals,
    AttachRun,
    BeginRun,
    ControlRun,
    ForkRun,
    GetRun,
    ListApprovals,
    ListRuns,
    Pruned,
    PruneRuns,
    RunInfo,
    RunList,
)
from ...schemas.agent_log import AnyEvent, Entry, RunStarted
from ...schemas.serve import GrammarKind
from ...schemas.tool import ListTools, ToolInfo
from .calls import ASK_HUMAN, OWN, agent_info
from .children import matching
from .effects import DIRECTORY
from .errors import NoSuchApproval, NoSuchRun, RunInvalid
from .executor import ExecutorConfig
from .forking import forked
from .log import RunLog
from .planners import check_options, planner_named
from .policy import Policy, check_rules, is_never_allowed, read_policy

JOURNALS = "agents."
_NUMBERED = re.compile(r"agents\.(\d+)")
_ID = re.compile(r"(\d+)-[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")
# Reading a long journal after a crash may take as long.
START_TIMEOUT_S = 120.0
# A model that takes longer to say is loading, so it is an engine, which can all.
ABILITIES_TIMEOUT_S = 5.0
# Runs are kept for days, so this often is often enough.
PRUNE_EVERY_S = 3600.0
# Thousands of logs, each deleted by itself.
PRUNE_TIMEOUT_S = 600.0
DAY_S = 86400.0


class RunsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`executors`: among how many the runs are shared out; `processes`: each in one of its own.

    `policy`: a file with rules; `keep_days`: after so many days ended runs are removed; `questions`: whether what waits
    for people is also on the board of questions. Where they say nothing, the settings' table `[agents]` does.
    """

    executors: int = 1
    processes: bool = False
    policy: str = ""
    keep_days: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    questions: bool | None = None


class Runs(Actor[RunsConfig]):
    """What it is asked it passes on, so all of its handlers run beside each other."""

    # An executor that could not write (the server was away, the disk full) starts again until it can.
    supervision = Supervision(max_restarts=1000, period_s=600.0, backoff_s=0.1, backoff_max_s=5.0)

    async def started(self) -> None:
        settings = (self.node.settings or load_settings()).agents
        file = self.config.policy or settings.policy
        self._policy = policy = read_policy(Path(file)) if file else Policy()
        questions = settings.questions if self.config.questions is None else self.config.questions
        logs = await list_logs(self.node)
        known = [int(found[1]) for name in logs if (found := _NUMBERED.fullmatch(name))]
        count = max(self.config.executors, 1, *(number + 1 for number in known), 1)
        self._executors: list[Ref] = []
        for number in range(count):
            config = ExecutorConfig(f"{JOURNALS}{number}", policy, questions)
            root = self.address.replace(".", "-")
            name = f"{root}-{number}" if self.config.processes else f"executor-{number}"
            where = Process(ready_timeout=START_TIMEOUT_S) if self.config.processes else Here()
            self._executors.append(await self.spawn("agent.executor", config, name=name, where=where))
        if keep_days := self.config.keep_days or settings.keep_days:
            self.start_soon(self._keep_tidy, keep_days * DAY_S)

    async def _keep_tidy(self, keep_s: float) -> None:
        while True:
            try:
                done = await self.prune(PruneRuns(time.time() - keep_s))
                if done.count:
                    log.info("%d runs that ended long ago were removed", done.count)
            except CallboardError as error:  # an executor that starts again, say: there is a next time
                log.warning("old runs could not be removed for now: %s", error)
            await asyncio.sleep(PRUNE_EVERY_S)  # its own period

    # Starting

    @handler(concurrent=True)
    async def run(self, message: AgentRun) -> AsyncGenerator[Entry | RunInfo]:
        """Raises NoSuchPlanner, RunInvalid, ConfigError, and what the directory of tools raises."""
        run = self._new_id(message.key)
        executor = self._executor(run)
        if message.key:
            try:
                info = await executor.ask(GetRun(run))
            except NoSuchRun:
                info = await self._begin(run, message)
        else:
            info = await self._begin(run, message)
        if message.detach:
            yield info
            return
        async with aclosing(self._attach(AttachRun(run))) as items:
            async for item in items:
                yield item

    async def _begin(self, run: str, message: AgentRun) -> RunInfo:
        for planner, options in ((message.planner, message.options), *((a.planner, a.options) for a in message.agents)):
            check_options(planner_named(planner, self.node.allow), options)
        check_rules(message.rules)
        wanted = (*message.tools, *(name for agent in message.agents for name in agent.tools))
        known = await self._known_tools(wanted)
        tools = matching(message.tools, known)
        agent_tools = matching([name for agent in message.agents for name in agent.tools], known)
        ruled = (*tools, *agent_tools, *map(agent_info, message.agents))
        hidden = {tool.name for tool in ruled if is_never_allowed(self._policy, message.rules, tool)} - {ASK_HUMAN}
        started = RunStarted(
            at=time.time(),
            planner=message.planner,
            task=message.task,
            model=message.model,
            model_address=message.model_address,
            tools=tools,
            agents=message.agents,
            agent_tools=agent_tools,
            budget=message.budget,
            options=message.options,
            rules=message.rules,
            session=message.session,
            memory=message.memory,
            temperature=message.temperature,
            seed=message.seed,
            max_tokens=message.max_tokens,
            adapter=message.adapter,
            abilities=await self._abilities({message.model_address, *(a.model_address for a in message.agents)} - {""}),
            hidden=tuple(sorted(hidden)),
            shown=await self._shown(message, [tool.name for tool in tools if tool.name not in hidden]),
        )
        size = len(msgspec.msgpack.encode(started))
        if size > self.node.jetstream.max_payload // 2:
            raise RunInvalid(f"a run that begins with {size} bytes is too large", hint="give it fewer tools")
        return await self._executor(run).ask(BeginRun(run, (started,)))

    async def _shown(self, message: AgentRun, names: Sequence[str]) -> tuple[str, ...]:
        """Of too many tools: those that were named one by one, and then those that fit the task best."""
        if len(names) <= message.max_tools or not message.max_tools:
            return ()
        named = [name for name in message.tools if name in names]  # `ask_human` is never meant by a `*`
        fitting = (await self.actor(DIRECTORY).ask(ListTools(message.task, message.tools))).tools
        ranked = dict.fromkeys([*named, *(tool.name for tool in fitting if tool.name in names), *names])
        return tuple(ranked)[: max(message.max_tools, len(named))]

    async def _abilities(self, addresses: Collection[str]) -> tuple[ModelAbilities, ...]:
        """Of those models that cannot do all; a planner goes by them, so they are part of what a run began with."""
        found = await asyncio.gather(*map(self._abilities_of, sorted(addresses)))
        return tuple(one for one in found if one is not None and not {*GrammarKind}.issubset(one.grammars))

    async def _abilities_of(self, address: str) -> ModelAbilities | None:
        try:
            found = await self.actor(address).ask(GetAbilities(), ABILITIES_TIMEOUT_S)
        except CallboardError as error:  # away, or busy, or of a kind that does not say: the run will see
            log.debug("what the model %s can do is not known: %s", address, error)
            return None
        return msgspec.structs.replace(found, address=address)

    async def _known_tools(self, names: Sequence[str]) -> Sequence[ToolInfo]:
        if not names:
            return ()
        own = (OWN[ASK_HUMAN],) if ASK_HUMAN in names else ()
        if all(name == ASK_HUMAN for name in names):
            return own
        listed = ((await self.actor(DIRECTORY).ask(ListTools())).tools) + own
        for name in names:
            if not name.endswith("*") and all(tool.name != name for tool in listed):
                guess = did_you_mean(name, [tool.name for tool in listed])
                hint = f"did you mean '{guess}'?" if guess else "`callboard tool list` shows them"
                raise RunInvalid(f"there is no tool named '{name}'", hint=hint)
        return listed

    def _new_id(self, key: str) -> str:
        count = min(max(self.config.executors, 1), len(self._executors))
        if key:
            digest = hashlib.sha256(key.encode()).hexdigest()
            return f"{int(digest[:8], 16) % count}-{digest[8:20]}"
        return f"{secrets.randbelow(count)}-{secrets.token_hex(5)}"

    @handler(concurrent=True)
    async def fork(self, message: ForkRun) -> RunInfo:
        """Raises NoSuchRun, NoSuchPlanner, RunInvalid."""
        events: list[AnyEvent] = []
        async with self._executor(message.run).stream(AttachRun(message.run, 0, follow=False)) as entries:
            async for entry in entries:
                events.append(entry.event)
        begun = forked(message, events, time.time())
        log = RunLog("", begun)
        check_options(planner_named(log.started.planner, self.node.allow), log.started.options)
        run = f"{message.run.partition('-')[0]}-{secrets.token_hex(5)}"
        return await self._executor(run).ask(BeginRun(run, begun))

    # Passing on

    @handler(concurrent=True)
    async def attach(self, message: AttachRun) -> AsyncGenerator[Entry | RunInfo]:
        async with aclosing(self._attach(message)) as items:
            async for item in items:
                yield item

    async def _attach(self, message: AttachRun) -> AsyncGenerator[Entry | RunInfo]:
        async with self._executor(message.run).stream(message) as entries:
            async for entry in entries:
                yield entry
            yield entries.result

    @handler(concurrent=True)
    async def get(self, message: GetRun) -> RunInfo:
        return await self._executor(message.run).ask(message)

    @handler(concurrent=True)
    async def control(self, message: ControlRun) -> RunInfo:
        return await self._executor(message.run).ask(message)

    @handler(concurrent=True)
    async def answer(self, message: AnswerApproval) -> Answered:
        try:
            return await self._executor(message.id.partition(":")[0]).ask(message)
        except NoSuchRun:
            raise NoSuchApproval(f"nothing waits under '{message.id}'") from None

    @handler(concurrent=True)
    async def list_runs(self, message: ListRuns) -> RunList:
        parts = await asyncio.gather(*(executor.ask(message) for executor in self._executors))
        runs = sorted((run for part in parts for run in part.runs), key=lambda run: -run.began_at)
        return RunList(tuple(runs[: message.limit]))

    @handler(concurrent=True)
    async def prune(self, message: PruneRuns) -> Pruned:
        parts = await asyncio.gather(*(executor.ask(message, PRUNE_TIMEOUT_S) for executor in self._executors))
        return Pruned(sum(part.count for part in parts))

    @handler(concurrent=True)
    async def list_approvals(self, message: ListApprovals) -> Approvals:
        if message.run:
            return await self._executor(message.run).ask(message)
        parts = await asyncio.gather(*(executor.ask(message) for executor in self._executors))
        found = sorted((one for part in parts for one in part.approvals), key=lambda one: (one.asked_at, one.id))
        return Approvals(tuple(found))

    def _executor(self, run: str) -> Ref:
        found = _ID.fullmatch(run)
        if found is None or int(found[1]) >= len(self._executors):
            raise NoSuchRun(f"there is no run {run}")
        return self._executors[int(found[1])]
