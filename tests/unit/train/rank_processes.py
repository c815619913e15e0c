"""Two processes that meet in torch.distributed again and again: to start them costs more than what they are to do."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORLD_SIZE = 2


class Ranks:
    """`run(function, *args)` calls `function(rank, world_size, store, *args)` in each process, where `store` is a path
    for a new FileStore, and returns what the ranks return."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._num_runs = 0
        context = multiprocessing.get_context("spawn")
        self._connections: list[Any] = []
        self.processes = []
        for rank in range(WORLD_SIZE):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, there), daemon=True)
            process.start()
            there.close()
            self._connections.append(here)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        self._num_runs += 1
        for connection in self._connections:
            connection.send((function, (str(self._folder / f"store-{self._num_runs}"), *args)))
        answers = [connection.recv() for connection in self._connections]
        failures = [text for ok, text in answers if not ok]
        assert not failures, "\n".join(failures)
        return [value for _, value in answers]

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self.processes:
            process.join()


def _serve(rank: int, connection: Any) -> None:
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            function, args = connection.recv()
            answer = True, function(rank, WORLD_SIZE, *args)
        except EOFError:
            return
        except Exception:
            answer = False, traceback.format_exc()
        connection.send(answer)
