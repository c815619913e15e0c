"""`callboard reload`, and what `up` and `status` print of the company file."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from .command import Command, add_json_option, add_state_option, run_async
from .tables import print_table

if TYPE_CHECKING:
    from ..schemas.company import CompanyReloaded, CompanyState
    from .client import Client


async def get_company(bus: Client, *, settled: bool = False) -> CompanyState | None:
    """How the daemon's company stands; None where it has no company file. `settled` waits for starts under way."""
    from ..schemas.company import GetCompany
    from .client import MAIN

    state = await bus.actor(MAIN).ask(GetCompany(settled), timeout=math.inf if settled else None)
    return state if state.file else None


def stands_as_listed(state: CompanyState) -> bool:
    """Whether the file is in order, and all that it lists runs as it says, or has ended as it may."""
    from ..schemas.company import Standing

    fine = (Standing.RUNNING, Standing.ENDED, Standing.EXTRA)
    return state.problem is None and all(actor.standing in fine for actor in state.actors)


def print_company(state: CompanyState) -> None:
    rows: list[tuple[str, ...]] = [("ACTOR", "KIND", "STANDING", "WHY")]
    rows += [(actor.name, actor.kind, actor.standing.value, actor.why) for actor in state.actors]
    print_table(rows)
    if state.problem is not None:
        print(f"{state.problem.message}\nCompared with what the file said before.", file=sys.stderr)


async def show_start(state_dir: str, as_json: bool) -> int:
    """Waits until the company is started, and says what failed; the exit code of `callboard up --detach`."""
    from .client import connect

    async with connect(state_dir=state_dir) as bus:
        state = await get_company(bus, settled=True)
    if state is None:
        return 0
    lost = [actor for actor in state.actors if actor.standing not in ("running", "ended", "extra")]
    for actor in lost:
        print(f"{actor.name} is {actor.standing.value}: {actor.why}", file=sys.stderr)
    if not as_json:
        listed = sum(actor.standing != "extra" for actor in state.actors)
        print(f"company: {listed - len(lost)} of {listed} actors of {state.file} run")
    return 0 if stands_as_listed(state) else 1


def _configure_reload(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be changed")
    add_json_option(parser)
    add_state_option(parser)


def _reload(args: Namespace) -> int:
    from ..schemas.company import ReloadCompany

    async def run() -> int:
        from .client import MAIN, connect

        async with connect(state_dir=args.state_dir) as bus:
            done = await bus.actor(MAIN).ask(ReloadCompany(args.dry_run), timeout=math.inf)
        if args.json:
            print(msgspec.json.encode(done).decode())
        else:
            _print_steps(done, dry_run=args.dry_run)
        return 1 if any(step.error is not None for step in done.steps) else 0

    return run_async(run)


def _print_steps(done: CompanyReloaded, *, dry_run: bool) -> None:
    from ..schemas.company import Action

    changes = [step for step in done.steps if step.action is not Action.KEEP]
    kept = len(done.steps) - len(changes)
    for step in changes:
        reason = f" ({step.why})" if step.why else ""
        failed = f": {step.error.message}" if step.error is not None else ""
        words = f"{'would ' if dry_run else ''}{'could not ' if failed else ''}{step.action.value}"
        print(f"{words} {step.name}{reason}{failed}", file=sys.stderr if failed else sys.stdout)
    if changes:
        print(f"unchanged: {kept}")
    else:
        print(f"nothing differs: {_listed(done.steps)} as in {done.file}")


def _listed(steps: Sequence[object]) -> str:
    return f"{len(steps)} {'actor' if len(steps) == 1 else 'actors'}"


reload = Command(
    "read the company file again and change only what differs",
    _configure_reload,
    _reload,
    details="Actors that the file no longer lists are stopped, new ones started, changed ones restarted; the others "
    "go on\nundisturbed. A file with a mistake in it changes nothing. SIGHUP to the daemon does the same.",
)
