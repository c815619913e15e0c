"""`callboard gateway key new|list|revoke`, `callboard gateway start|list`."""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ...runtime.command import (
    Command,
    add_bus_options,
    add_json_option,
    add_state_option,
    paths_of,
    run_async,
    settings_of,
)
from ...runtime.commands_actors import at_least_one, client_of, to_json
from ...runtime.commands_creds import duration
from ...runtime.errors import UsageError
from ...runtime.served import GRPC_KIND, HTTP_KIND, default_keys_file, gateway_options, open_to_others
from ...runtime.tables import print_table
from .keys import USUAL_SCOPES, Key, Scope, new_key, read_keys, revoke_key

if TYPE_CHECKING:
    from ...runtime.folders import Paths


def _configure(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="start|list|key")

    start = actions.add_parser("start", help="have the daemon run one, also after a crash")
    where = start.add_mutually_exclusive_group(required=True)
    where.add_argument("--http", metavar="HOST:PORT", help="speaks the APIs of OpenAI and Anthropic")
    where.add_argument("--grpc", metavar="HOST:PORT", help="speaks KServe v2")
    start.add_argument("--name", default="", help="what it is called on the bus (default: http or grpc)")
    start.add_argument("--keys", metavar="FILE", help="who may ask it (default: the file of `key new`, if any)")
    start.set_defaults(do=_start)

    listing = actions.add_parser("list", help="which gateways run, and where they listen")
    listing.set_defaults(do=_list)
    for action in (start, listing):
        add_json_option(action)
        add_bus_options(action)

    key = actions.add_parser("key", help="make, list and revoke keys")
    of_keys = key.add_subparsers(dest="key_action", required=True, metavar="new|list|revoke")
    new = of_keys.add_parser("new", help="make a key and print it, once; one of that name is revoked")
    new.add_argument("name", help="whose it is: letters, digits, and any of - _ . @")
    new.add_argument(
        "--scope",
        action="append",
        choices=[scope.value for scope in Scope],
        help=f"what it may be used for; may be given again (default: {' and '.join(USUAL_SCOPES)})",
    )
    new.add_argument("--requests-per-minute", type=at_least_one, metavar="N", default=0, help="default: no limit")
    new.add_argument("--tokens-per-minute", type=at_least_one, metavar="N", default=0, help="default: no limit")
    new.add_argument("--expires", type=duration, metavar="TIME", help="for so long, 90d say (default: until revoked)")
    new.set_defaults(do=_new_key)
    keys = of_keys.add_parser("list", help="which keys there are, and were")
    keys.set_defaults(do=_list_keys)
    revoke = of_keys.add_parser("revoke", help="gateways take it no more, at once")
    revoke.add_argument("name")
    revoke.set_defaults(do=_revoke_key)
    for action in (new, keys, revoke):
        action.add_argument("--file", metavar="FILE", help="the file of keys (default: one in the state folder)")
        add_json_option(action)
        add_state_option(action)


def _run(args: Namespace) -> int:
    return args.do(args)


# Keys


def _file(args: Namespace) -> Path:
    named = args.file or settings_of(args).gateway.get("keys_file")
    return Path(str(named)).expanduser() if named else default_keys_file(paths_of(args))


def _new_key(args: Namespace) -> int:
    file = _file(args)
    scopes = [Scope(scope) for scope in args.scope or USUAL_SCOPES]
    expires = time.time() + args.expires if args.expires else 0.0
    secret = new_key(
        file,
        args.name,
        scopes,
        requests_per_minute=args.requests_per_minute,
        tokens_per_minute=args.tokens_per_minute,
        expires=expires,
    )
    _audit(paths_of(args), "gateway.key.new", args.name, f"scopes {', '.join(scopes)}, in {file}")
    if args.json:
        print(to_json({"name": args.name, "key": secret, "scopes": scopes, "expires": expires, "file": str(file)}))
        return 0
    print(secret)
    print(f"for {args.name}, kept as a hash in {file}: it cannot be shown again", file=sys.stderr)
    return 0


class ListedKey(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `callboard gateway key list --json`. Times are seconds since 1970, 0 for never."""

    name: str
    state: str
    scopes: tuple[Scope, ...]
    requests_per_minute: int
    tokens_per_minute: int
    made: float
    expires: float
    revoked: float


def _list_keys(args: Namespace) -> int:
    try:
        keys = read_keys(_file(args))
    except FileNotFoundError:
        keys = ()
    now = time.time()
    if args.json:
        print(to_json([_listed(key, now) for key in keys]))
        return 0
    rows: list[tuple[str, ...]] = [("NAME", "STATE", "SCOPES", "REQUESTS/MIN", "TOKENS/MIN", "MADE", "EXPIRES")]
    for key in keys:
        limits = (str(key.requests_per_minute or "-"), str(key.tokens_per_minute or "-"))
        rows.append((key.name, _state(key, now), ",".join(key.scopes), *limits, _when(key.made), _when(key.expires)))
    print_table(rows)
    return 0


def _listed(key: Key, now: float) -> ListedKey:
    fields = msgspec.structs.asdict(key)
    del fields["hash"]
    return ListedKey(state=_state(key, now), **fields)


def _state(key: Key, now: float) -> str:
    return "good" if key.is_good(now) else "revoked" if key.revoked else "expired"


def _revoke_key(args: Namespace) -> int:
    file = _file(args)
    if not file.is_file():
        raise UsageError(f"there is no file of keys {file}")
    revoke_key(file, args.name)
    _audit(paths_of(args), "gateway.key.revoke", args.name, f"in {file}")
    print(to_json({"revoked": args.name}) if args.json else f"{args.name} is revoked")
    return 0


def _audit(paths: Paths, action: str, what: str, detail: str) -> None:
    from ...runtime.audit import Audit, this_person

    Audit.of(paths).record(action, what, by=this_person(), proven=True, detail=detail)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


# Gateways


def _start(args: Namespace) -> int:
    from ...runtime.served import Wish, start_gateway

    options = gateway_options(settings_of(args, **{"gateway.keys_file": args.keys}), paths_of(args))
    if warning := open_to_others(Wish(http=args.http or "", grpc=args.grpc or ""), options):
        print(f"callboard: {warning}", file=sys.stderr)
    kind, listen = (HTTP_KIND, args.http) if args.http else (GRPC_KIND, args.grpc)
    name = args.name or kind.rpartition(".")[2]

    async def run() -> int:
        async with client_of(args) as bus:
            url = await start_gateway(bus, kind, listen, options, name)
        keys = options.get("keys_file", "")
        if args.json:
            print(to_json({"name": name, "kind": kind, "url": url, "keys": keys}))
        else:
            print(f"{name}: {url}" + (f", keys in {keys}" if keys else ", for all who reach it"))
        return 0

    return run_async(run)


def _list(args: Namespace) -> int:
    from ...runtime.served import gateways

    async def run() -> int:
        async with client_of(args) as bus:
            actors = await bus.actors()
            urls = await gateways(bus, actors)
        found = [(info.address, info.kind, urls[info.address], info.node) for info in actors if info.address in urls]
        if args.json:
            print(to_json([dict(zip(("name", "kind", "url", "node"), one, strict=True)) for one in found]))
        else:
            print_table([("NAME", "KIND", "URL", "NODE"), *found])
        return 0

    return run_async(run)


gateway = Command(
    "run gateways for HTTP and gRPC clients, and decide who may ask them",
    _configure,
    _run,
    details="Clients send a key as `Authorization: Bearer KEY` or `x-api-key: KEY`. What a key may be used for:\n"
    "  chat        chat, completions, messages, responses, inference\n"
    "  embeddings  embeddings\n"
    "  training    files and fine-tuning jobs\n"
    "  metrics     /metrics\n"
    "  admin       sessions, approvals, the page's own data\n"
    "A gateway without a file of keys answers everybody who reaches it. More in docs/gateway.md.",
)
