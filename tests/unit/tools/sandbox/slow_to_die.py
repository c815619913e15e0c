"""A warden whose children get hardly any of the processor that they share. Prints whether it could end them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from callboard.actors.tools.sandbox.family import Family

CHILDREN = 4


def main() -> None:
    for _ in range(CHILDREN):
        if os.fork() == 0:
            time.sleep(600)
            os._exit(0)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in map(int, children):
        os.sched_setaffinity(child, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(child, os.SCHED_IDLE, os.sched_param(0))
    family = Family(os.open("/proc", os.O_RDONLY | os.O_DIRECTORY), translate=False)
    print(family.end_all_but(0))


if __name__ == "__main__":
    main()
