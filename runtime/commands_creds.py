"""`callboard creds new NAME`: a user on the embedded server for a program that is none of ours."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

import msgspec

from .command import Command, add_json_option, add_state_option, paths_of
from .errors import NotReachable, UsageError


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("new",), help="new: make a user")
    parser.add_argument("name", help="what the program is called on the bus: letters, digits, - and _")
    add_json_option(parser)
    add_state_option(parser)


def _run(args: Namespace) -> int:
    from pathlib import Path

    from .credentials import PROGRAM, inbox_prefix, mint_user_file
    from .daemon_info import find_daemon

    paths = paths_of(args)
    daemon = find_daemon(paths)
    if daemon is None:
        raise NotReachable(f"no daemon is running on {paths.state}")
    if not daemon.account:
        raise UsageError(
            f"the bus is a server of your own, {daemon.url}, which makes its own users",
            hint="use the credentials that it gives you",
        )
    account = Path(daemon.account)
    file = account.parent / "programs" / f"{args.name}.creds"
    seed = account.read_text("ascii").strip()
    mint_user_file(file, seed, args.name, args.name, PROGRAM)
    made = {"url": daemon.url, "creds": str(file), "inbox_prefix": inbox_prefix(args.name)}
    if args.json:
        print(msgspec.json.encode(made).decode())
    else:
        for key, value in made.items():
            print(f"{key:13} {value}")
    return 0


creds = Command(
    "make credentials for a program of your own on the embedded server",
    _configure,
    _run,
    details="It prints the server's address, the creds file (only you can read it), and the prefix of the inbox that "
    "the\nprogram may wait for answers under: give all three to its NATS client. It may ask actors, publish on\n"
    "topic.>, and listen to topic.>, dead.> and its inbox. Use a name for one program only.",
)
