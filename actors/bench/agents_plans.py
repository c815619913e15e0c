"""ReWOO beside ReAct on one task: look nine things up that do not need each other, and one that needs two of them.

The model is scripted: it takes as long as a model would, and gives both the same answer. So what differs is how often
it is asked, with how much, and what waits for what.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ...runtime.node import Node
from ...schemas.agent import AgentRun, RunInfo
from ...schemas.scripted import FinishScript, ScriptedAnswer
from ..agent.scripted import Scripted, ScriptedConfig
from .agents_company import ENDLESS, SEARCH_S, company, until_over
from .errors import AgentsFailed
from .report import Report

MODEL_S = 0.3
TASK = "Which of nine towns has the most people for its area, and who founded it?"
TOWNS = ("Oslo", "Bergen", "Trondheim", "Stavanger", "Drammen", "Tromso", "Sandnes", "Bodo", "Alesund")
LAST = f"founder of {TOWNS[0]} or {TOWNS[1]}"
ANSWER = f"{TOWNS[0]}, founded by its king."
# Plan, the independent steps at once, the one that needs two of them, solve.
PATH_S = MODEL_S + SEARCH_S + SEARCH_S + MODEL_S


class Played(NamedTuple):
    seconds: float
    info: RunInfo


def react_script() -> tuple[ScriptedAnswer, ...]:
    queries = [f"people of {town}" for town in TOWNS] + [LAST]
    turns = [
        f'Thought: I look up the {query}.\nAction: search\nAction Input: {{"query": "{query}"}}' for query in queries
    ]
    last = f"Thought: I know enough.\nFinal Answer: {ANSWER}"
    return tuple(ScriptedAnswer(text=text, seconds=MODEL_S) for text in (*turns, last))


def rewoo_script() -> tuple[ScriptedAnswer, ...]:
    steps = [
        f"Plan: I look up the people of {town}.\n#E{number} = search[people of {town}]"
        for number, town in enumerate(TOWNS, 1)
    ]
    last = f"Plan: I look up the founder.\n#E{len(TOWNS) + 1} = search[founder by #E1 and #E2]"
    return tuple(ScriptedAnswer(text=text, seconds=MODEL_S) for text in ("\n".join((*steps, last)), ANSWER))


async def measure(report: Report, url: str, rounds: int, step: Callable[[str], None]) -> None:
    """Add the figures of both, and the targets. Raises AgentsFailed where they do not answer the same."""
    walls: dict[str, list[float]] = {"rewoo": [], "react": []}
    tokens: dict[str, list[float]] = {"rewoo": [], "react": []}
    scripts = {"rewoo": rewoo_script(), "react": react_script()}
    async with company(url) as node:
        for number in range(rounds):
            for planner, script in scripts.items():
                step(f"{planner}, round {number + 1} of {rounds}")
                played = await _play(node, planner, script)
                walls[planner].append(played.seconds)
                tokens[planner].append(played.info.spent.prompt_tokens)
    for planner in scripts:
        report.add(f"{planner}_wall", walls[planner], "s")
        report.add(f"{planner}_prompt_tokens", tokens[planner], "tokens")
    over_path = [seconds / PATH_S for seconds in walls["rewoo"]]
    report.add_target("rewoo_wall_over_path", 1.15, "x", over_path, at_most=True)
    over_react = [a / b for a, b in zip(tokens["rewoo"], tokens["react"], strict=True)]
    report.add_target("rewoo_prompt_tokens_over_react", 0.2, "x", over_react, at_most=True)


async def _play(node: Node, planner: str, script: tuple[ScriptedAnswer, ...]) -> Played:
    model = await node.spawn(Scripted, ScriptedConfig(answers=script), name="engine")
    request = AgentRun(planner=planner, task=TASK, tools=("search",), budget=ENDLESS, detach=True)
    began = time.perf_counter()
    info = await until_over(node.actor("agents"), request)
    seconds = time.perf_counter() - began
    # Every answer of the script was asked for, and nothing else.
    await model.ask(FinishScript())
    await node.stop("engine")
    searches = len(TOWNS) + 1
    if info.answer != ANSWER or info.spent.steps != searches + len(script):
        raise AgentsFailed(f"{planner} answered '{info.answer}' after {info.spent.steps} steps")
    return Played(seconds, info)
