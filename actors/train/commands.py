"""`callboard train`, and `jobs`, `pause`, `resume`, `cancel` for what it started."""

from __future__ import annotations

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async, tls_of
from .command_options import add_options, config_of, has_settings, made_up_name

if TYPE_CHECKING:
    from ...runtime.client import Client
    from ...runtime.refs import Ref
    from ...schemas.base import Message, Request
    from ...schemas.train import TrainEvent, TrainJob

# train


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what", nargs="?", metavar="CONFIG.toml | MODEL", help="a file of settings, or the model to train"
    )
    add_options(parser)
    jobs = parser.add_argument_group("the job")
    jobs.add_argument("--name", default="", metavar="JOB", help="what it is called; one of that name is followed")
    how = jobs.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="start it and return")
    how.add_argument("--attach", metavar="JOB", help="follow one that was started before")
    how.add_argument("--here", action="store_true", help="in this process, without the daemon")
    how.add_argument(
        "--plot",
        nargs="+",
        metavar="JOB",
        help="curves of jobs, in the terminal; also into FILE.png, FILE.svg or FILE.html where one is named",
    )
    jobs.add_argument("--smoothing", type=float, default=0.8, metavar="S", help="of curves, 0 to below 1")
    jobs.add_argument("--log", action="store_true", help="losses on a logarithmic axis")
    add_json_option(parser)
    add_bus_options(parser)


def _train(args: Namespace) -> int:
    from ...runtime.errors import UsageError

    if args.attach and (has_settings(args) or args.name):
        raise UsageError("--attach follows a job as it is", hint="leave out its settings and --name")
    if args.plot:
        if has_settings(args):
            raise UsageError("--plot shows jobs that are there", hint="leave out the settings")
        return _plot(args)
    if args.attach:
        return _follow(args, args.attach)
    config = config_of(args)
    if args.here:
        if args.name:
            raise UsageError("a run in this process has no name", hint="leave out --name or --here")
        return _here(args)
    name = args.name or made_up_name(config)

    async def start() -> int:
        from ...schemas.train import RunTraining
        from .follow import ensure_jobs

        async with _client(args) as bus:
            job = await (await ensure_jobs(bus)).ask(RunTraining(config, name))
        if args.detach:
            _print_json(job) if args.json else print(job.job)
        return 0

    run_async(start)
    if args.detach:
        return 0
    if not args.json:
        print(f"job {name}", file=sys.stderr)
    return _follow(args, name)


def _plot(args: Namespace) -> int:
    """Job folders are read as they are, so this needs no daemon."""
    import shutil
    from pathlib import Path

    from rich.console import Console

    from .curves import KINDS, terminal_curves, write_curves
    from .history import read_history
    from .job_folder import jobs_folder

    files = [name for name in args.plot if Path(name).suffix.lower() in KINDS]
    names = [name for name in args.plot if name not in files]
    histories = [read_history(name, jobs_folder() / name / "events.jsonl") for name in names]
    if files:
        for file in files:
            write_curves(histories, Path(file), smoothing=args.smoothing, log=args.log)
            print(file)
        return 0
    width, height = shutil.get_terminal_size()
    Console().print(terminal_curves(histories, width, height - 1, smoothing=args.smoothing, log=args.log))
    return 0


def _follow(args: Namespace, name: str) -> int:
    """Follow a job to its end. Ctrl-C leaves it to itself."""
    ends: list[TrainJob] = []

    async def follow() -> int:
        from ...schemas.train import AskTraining
        from .follow import ensure_jobs, follow_job

        async with _client(args) as bus:
            jobs = await ensure_jobs(bus)
            await jobs.ask(AskTraining(name))  # where there is none, this says so
            if args.json:
                ends.append(await follow_job(bus, name, _print_json))
            else:
                from .progress_bar import shown

                with shown(name) as hear:
                    ends.append(await follow_job(bus, name, hear))
        return 0

    try:
        run_async(follow)
    except KeyboardInterrupt:
        print(f"\njob {name} goes on: `callboard train --attach {name}` comes back to it", file=sys.stderr)
        raise
    return _ended(args, ends[0])


def _here(args: Namespace) -> int:
    from .here import folder_here, run_here
    from .progress_bar import shown

    config = config_of(args)
    if args.json:
        job = run_here(config, _print_json)
    else:
        with shown(config.model) as hear:
            job = run_here(config, hear)
    _ended(args, job)
    if job.state.value == "paused":
        from pathlib import Path

        print(f"it lies in {folder_here(Path(config.out))}: the same command goes on with it", file=sys.stderr)
        return 130
    return 0


def _ended(args: Namespace, job: TrainJob) -> int:
    from ...runtime.errors import from_info
    from ...schemas.train import JobState
    from . import errors as _errors  # noqa: F401  (so that the job's error is of its type)

    if args.json:
        _print_json(job)
    match job.state:
        case JobState.FINISHED:
            if not args.json:
                print(job.out)
            return 0
        case JobState.FAILED if job.error is not None:
            raise from_info(job.error)
        case JobState.PAUSED:
            print(f"paused after step {job.step} of {job.num_steps}", file=sys.stderr)
            return 0
        case _:
            print(f"{job.state.value} after step {job.step}", file=sys.stderr)
            return 1


train = Command(
    "fine-tune a model, as a job that goes on whatever dies",
    _configure,
    _train,
    details="Ctrl-C leaves the job running. docs/training.md lists the settings of a configuration.",
)


# jobs


def _configure_jobs(parser: ArgumentParser) -> None:
    parser.add_argument("job", nargs="?", help="this one alone, with all that is known of it")
    add_json_option(parser)
    add_bus_options(parser)


def _jobs(args: Namespace) -> int:
    found: list[TrainJob] = []

    async def ask() -> int:
        from ...schemas.train import AskTraining, ListTraining
        from .follow import ensure_jobs

        async with _client(args) as bus:
            actor = await ensure_jobs(bus)
            if args.job:
                found.append(await actor.ask(AskTraining(args.job)))
            else:
                found.extend((await actor.ask(ListTraining())).jobs)
        return 0

    run_async(ask)
    if args.json:
        import msgspec

        print(msgspec.json.encode(found[0] if args.job else found).decode())
    elif args.job:
        _print_job(found[0])
    else:
        from ...runtime.tables import print_table

        rows: list[tuple[str, ...]] = [("JOB", "STATE", "STEP", "LOSS", "MODEL", "OUT")]
        for job in found:
            loss = f"{job.loss:.4f}" if job.step else ""
            rows.append((job.job, job.state.value, _steps(job), loss, job.model, job.out))
        print_table(rows)
    return 0


def _print_job(job: TrainJob) -> None:
    from datetime import datetime

    rows = [
        ("job", job.job),
        ("state", job.state.value),
        ("step", _steps(job)),
        ("loss", f"{job.loss:.4f}" if job.step else ""),
        ("started", datetime.fromtimestamp(job.started).isoformat(" ", "seconds") if job.started else ""),
        ("model", job.model),
        ("data", job.data),
        ("out", job.out),
        ("folder", job.folder),
    ]
    if job.error is not None:
        rows += [("error", job.error.message), ("", job.error.hint)]
    for name, value in rows:
        if value:
            print(f"{name:<8} {value}")


def _steps(job: TrainJob) -> str:
    return f"{job.step}/{job.num_steps}" if job.num_steps else str(job.step)


jobs = Command("list training jobs, or show one", _configure_jobs, _jobs)


# pause, resume, cancel


def _configure_one(parser: ArgumentParser) -> None:
    parser.add_argument("job", help="as `callboard jobs` lists it")
    add_json_option(parser)
    add_bus_options(parser)


def _asking(request: Callable[[str], Request[TrainJob]]) -> Callable[[Namespace], int]:
    def run(args: Namespace) -> int:
        async def ask() -> int:
            from .follow import ensure_jobs

            async with _client(args) as bus:
                jobs: Ref = await ensure_jobs(bus)
                job = await jobs.ask(request(args.job), timeout=math.inf)  # a checkpoint takes its time
            if args.json:
                _print_json(job)
            else:
                print(f"{job.job}: {job.state.value}, step {_steps(job)}")
            return 0

        return run_async(ask)

    return run


def _pausing(job: str) -> Request[TrainJob]:
    from ...schemas.train import PauseTraining

    return PauseTraining(job)


def _resuming(job: str) -> Request[TrainJob]:
    from ...schemas.train import ResumeTraining

    return ResumeTraining(job)


def _cancelling(job: str) -> Request[TrainJob]:
    from ...schemas.train import CancelTraining

    return CancelTraining(job)


pause = Command("end a training job's processes for now, with a checkpoint", _configure_one, _asking(_pausing))
resume = Command("go on with a job that is paused, failed or cancelled", _configure_one, _asking(_resuming))
cancel = Command("end a training job; its checkpoints stay", _configure_one, _asking(_cancelling))


def _client(args: Namespace) -> AbstractAsyncContextManager[Client]:
    from ...runtime.client import connect

    return connect(args.nats or "", args.creds or "", state_dir=args.state_dir, tls=tls_of(args))


def _print_json(message: Message | TrainEvent) -> None:
    import msgspec

    print(msgspec.json.encode(message).decode(), flush=True)
