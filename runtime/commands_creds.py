"""`callboard creds new|token|list|revoke`: users on the embedded server for programs and machines other than these."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from .command import Command, add_json_option, add_state_option, duration, paths_of, run_async
from .errors import NotReachable, UsageError
from .roles import ROLES
from .tables import print_table

if TYPE_CHECKING:
    from .daemon_info import DaemonInfo
    from .folders import Paths
    from .ledger import Grant


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="new|token|list|revoke")

    new = actions.add_parser("new", help="make a user; one of that name is revoked")
    new.add_argument("name", help="what it is called on the bus: letters, digits, - and _")
    new.add_argument("--role", choices=tuple(ROLES), default="client", help="what it may do (default: client)")
    new.add_argument("--expires", type=duration, metavar="TIME", help="for so long, 90d say (default: until revoked)")
    new.set_defaults(do=_new)

    token = actions.add_parser("token", help="print a token with which one machine may join, once")
    token.add_argument("--role", choices=tuple(ROLES), default="node", help="what it joins as (default: node)")
    token.add_argument("--expires", type=duration, metavar="TIME", default=3600.0, help="default: 1h")
    token.set_defaults(do=_token)

    listing = actions.add_parser("list", help="who there is, and who was")
    listing.set_defaults(do=_list)

    revoke = actions.add_parser("revoke", help="put a user or a token out at once, and for good")
    revoke.add_argument("name", help="as `callboard creds list` shows it")
    revoke.set_defaults(do=_revoke)
    for action in (new, token, listing, revoke):
        add_json_option(action)
        add_state_option(action)


def _run(args: Namespace) -> int:
    return args.do(args, paths_of(args))


def _daemon_with_account(paths: Paths) -> DaemonInfo:
    from .daemon_info import find_daemon

    daemon = find_daemon(paths)
    if daemon is None:
        raise NotReachable(f"no daemon is running on {paths.state}")
    if not daemon.account:
        raise UsageError(
            f"the bus is a server of your own, {daemon.url}, which makes its own users",
            hint="use the credentials that it gives you",
        )
    return daemon


class Made(msgspec.Struct, frozen=True):
    """What `callboard creds new --json` prints."""

    url: str
    creds: str
    inbox_prefix: str
    role: str
    expires: float = 0.0


def _new(args: Namespace, paths: Paths) -> int:
    from .credentials import creds_text, new_user_key, sign_user
    from .files import write_private
    from .ledger import Grant, Ledger
    from .roles import inbox_prefix, role_named

    daemon = _daemon_with_account(paths)
    now = time.time()
    expires = now + args.expires if args.expires else 0.0
    inbox = f"{args.role}:{args.name}"
    account = Path(daemon.account)
    seed, key = new_user_key()
    token = sign_user(
        account.read_text("ascii").strip(),
        *(args.name, args.name, key, role_named(args.role)),
        inbox=inbox,
        expires=expires,
    )
    file = account.parent / "programs" / f"{args.name}.creds"
    grant = Grant(name=args.name, role=args.role, key=key, made=now, by=_person(), expires=expires, file=str(file))
    replaced = False
    with Ledger.of(paths).change() as grants:
        for index, old in enumerate(grants):
            if old.name == args.name and old.is_active(now):
                grants[index], replaced = msgspec.structs.replace(old, revoked=now), True
        grants.append(grant)
    write_private(file, creds_text(token, seed))
    _audit(
        paths, "creds.new", args.name, f"role {args.role}, key {key}" + (", its last one revoked" if replaced else "")
    )
    if replaced:
        _tell(paths, daemon)
    made = Made(daemon.url, str(file), inbox_prefix(inbox), args.role, expires)
    if args.json:
        print(msgspec.json.encode(made).decode())
    else:
        for name, value in msgspec.structs.asdict(made).items():
            if name != "expires" or expires:
                print(f"{name:13} {_when(expires) if name == 'expires' else value}")
    return 0


def _token(args: Namespace, paths: Paths) -> int:
    import secrets

    from .credentials import creds_text, new_user_key, sign_user
    from .joining import pack_token
    from .ledger import Grant, Ledger
    from .roles import JOIN

    daemon = _daemon_with_account(paths)
    now = time.time()
    expires = now + args.expires
    name = f"token-{secrets.token_hex(4)}"
    seed, key = new_user_key()
    signed = sign_user(
        Path(daemon.account).read_text("ascii").strip(),
        *(name, name, key, JOIN),
        inbox=f"join:{name}",
        expires=expires,
    )
    with Ledger.of(paths).change() as grants:
        grants.append(Grant(name=name, role="join", gives=args.role, key=key, made=now, expires=expires, by=_person()))
    _audit(paths, "creds.token", name, f"gives role {args.role}, until {_when(expires)}")
    token = pack_token(creds_text(signed, seed))
    if args.json:
        made = {"token": token, "name": name, "role": args.role, "expires": expires, "url": daemon.url}
        print(msgspec.json.encode(made).decode())
    else:
        print(token)
    return 0


class Listed(msgspec.Struct, frozen=True):
    """One line of `callboard creds list --json`. Times are seconds since the epoch, 0 for never."""

    name: str
    role: str
    state: str
    made: float
    expires: float
    revoked: float
    used: float
    used_name: str
    by: str
    key: str
    file: str


def _list(args: Namespace, paths: Paths) -> int:
    from .ledger import Ledger

    now = time.time()
    listed = [_listed(grant, now) for grant in Ledger.of(paths).grants()]
    if args.json:
        print(msgspec.json.encode(listed).decode())
        return 0
    rows = [
        (one.name, one.role, one.state, _when(one.made), _when(one.expires), _when(one.revoked), one.by, one.file)
        for one in listed
    ]
    print_table([("name", "role", "state", "made", "expires", "revoked", "by", "file"), *rows])
    return 0


def _listed(grant: Grant, now: float) -> Listed:
    role = f"join as {grant.gives}" if grant.gives else grant.role
    file = grant.file if grant.is_active(now) else ""
    times = (grant.made, grant.expires, grant.revoked, grant.used)
    return Listed(grant.name, role, grant.state(now), *times, grant.used_name, grant.by, grant.key, file)


def _revoke(args: Namespace, paths: Paths) -> int:
    from .daemon_info import find_daemon
    from .ledger import Ledger, remove_files

    daemon = find_daemon(paths)
    if daemon is not None and not daemon.account:
        _daemon_with_account(paths)
    revoked = Ledger.of(paths).revoke(args.name)
    remove_files(revoked)
    for grant in revoked:
        _audit(paths, "creds.revoke", grant.name, f"key {grant.key}")
    if daemon is not None:
        _tell(paths, daemon)
    if args.json:
        print(msgspec.json.encode({"revoked": [grant.name for grant in revoked]}).decode())
    else:
        for grant in revoked:
            print(f"{grant.name} is revoked")
    return 0


def _tell(paths: Paths, daemon: DaemonInfo) -> None:
    from .revocation import tell_server

    async def tell() -> int:
        await tell_server(paths, daemon)
        return 0

    run_async(tell)


def _person() -> str:
    from .audit import this_person

    return this_person()


def _audit(paths: Paths, action: str, what: str, detail: str) -> None:
    from .audit import Audit

    Audit.of(paths).record(action, what, by=_person(), proven=True, detail=detail)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


creds = Command(
    "make, list and revoke credentials for programs and machines on the embedded server",
    _configure,
    _run,
    details="What a user may do, by its role:\n"
    + "".join(f"  {role.name:8}  {role.summary}\n" for role in ROLES.values())
    + "\n`new` prints the server's address, the creds file (only you can read it), and the prefix of the inbox that\n"
    "the program may wait for answers under: give all three to its NATS client. `token` prints one string with which\n"
    "one other machine may join. More in docs/security.md.",
)
