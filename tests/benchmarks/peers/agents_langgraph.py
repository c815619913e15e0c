"""LangGraph with its SQLite savers: a graph whose one node does nothing but count, a checkpoint on the disk after each
step before the next one begins (`durability="sync"`).

Many at once are threads over the synchronous saver and tasks over the asynchronous one; the faster of the two counts.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from measure import Figures, note, show

STEPS = 300
RUNS, STEPS_OF_EACH = 50, 20


class State(TypedDict):
    done: int
    of: int


def graph_over(saver: BaseCheckpointSaver) -> Any:
    graph = StateGraph(State)
    graph.add_node("step", lambda state: {"done": state["done"] + 1})
    graph.add_edge(START, "step")
    graph.add_conditional_edges("step", lambda state: END if state["done"] >= state["of"] else "step")
    return graph.compile(checkpointer=saver)


def config(run: str, steps: int) -> dict[str, Any]:
    return {"configurable": {"thread_id": run}, "recursion_limit": steps + 10}


def check(state: State, steps: int) -> None:
    if state["done"] != steps:
        raise RuntimeError(f"{state['done']} of {steps} steps were done")


def run(graph: Any, name: str, steps: int) -> None:
    check(graph.invoke({"done": 0, "of": steps}, config(name, steps), durability="sync"), steps)


async def run_async(graph: Any, name: str, steps: int) -> None:
    check(await graph.ainvoke({"done": 0, "of": steps}, config(name, steps), durability="sync"), steps)


def main() -> None:
    """One round: whoever holds it against another calls it in turn with that."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        connection = sqlite3.connect(Path(folder, "sync.db"), check_same_thread=False)
        saver = SqliteSaver(connection)
        saver.setup()
        (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()
        if synchronous < 2:
            raise RuntimeError("this SQLite does not sync each commit, so the two are not comparable")
        graph = graph_over(saver)
        run(graph, "warm", 5)

        began = time.perf_counter()
        run(graph, "alone", STEPS)
        note(figures, "steps", STEPS / (time.perf_counter() - began))

        with ThreadPoolExecutor(RUNS) as pool:
            began = time.perf_counter()
            list(pool.map(lambda name: run(graph, name, STEPS_OF_EACH), [f"many-{n}" for n in range(RUNS)]))
            threads = RUNS * STEPS_OF_EACH / (time.perf_counter() - began)
        connection.close()
        tasks = asyncio.run(many_tasks(str(Path(folder, "async.db"))))
        note(figures, "concurrent_steps", max(threads, tasks))
    show(figures)


async def many_tasks(path: str) -> float:
    async with AsyncSqliteSaver.from_conn_string(path) as saver:
        graph = graph_over(saver)
        await run_async(graph, "warm", 5)
        began = time.perf_counter()
        await asyncio.gather(*(run_async(graph, f"many-{number}", STEPS_OF_EACH) for number in range(RUNS)))
        return RUNS * STEPS_OF_EACH / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
