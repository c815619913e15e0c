"""What a subcommand of `callboard` is, and the options that many of them share.

A package announces one as an entry point of the group `callboard.commands`, `chat = "package.module:chat"`, where
`chat` is a `Command`. Its module is imported when the command is used, and once to learn its summary, so it imports
what is heavy inside `run`.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVarTuple

if TYPE_CHECKING:
    from argparse import _ActionsContainer  # pyright: ignore[reportPrivateUsage]

    from .folders import Paths
    from .settings import Settings
    from .tls import Tls

Arguments = TypeVarTuple("Arguments")


@dataclass(frozen=True, slots=True)
class Command:
    """`summary` is one line for the list of commands, `configure` adds the options, `run` returns the exit code.

    `run` raises CallboardError for what the user should read as one line and a hint; the exit code follows from its
    type. `details` is shown below the options of `callboard NAME --help`.
    """

    summary: str
    configure: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]
    details: str = ""


def add_state_option(parser: _ActionsContainer) -> None:
    default = parser.argument_default or ""
    parser.add_argument("--state-dir", metavar="DIR", default=default, help="the daemon's folder (CALLBOARD_STATE_DIR)")


def add_bus_options(parser: ArgumentParser) -> None:
    """Which bus to talk to: the daemon of a state folder, or a NATS server of the user's own."""
    group = parser.add_argument_group("the bus")
    group.add_argument("--nats", metavar="URL", help="a NATS server of your own, in place of the daemon's")
    group.add_argument("--creds", metavar="FILE", help="the creds file for it")
    group.add_argument("--tls-ca", metavar="FILE", help="whom to trust for it (PEM; default: the system's authorities)")
    group.add_argument("--tls-cert", metavar="FILE", help="our certificate, where it asks for one")
    group.add_argument("--tls-key", metavar="FILE", help="the certificate's key")
    add_state_option(group)


def add_json_option(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(text: str) -> float:
    """Seconds, of an argument such as `12h`. Raises ArgumentTypeError."""
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * _UNITS_S[unit]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ArgumentTypeError(f"'{text}' is no time: it is a number and s, m, h or d, 12h say")
    return seconds


def paths_of(args: Namespace) -> Paths:
    """The folders, made if they are not there."""
    from .folders import Paths

    return Paths.find(args.state_dir).create()


def settings_of(args: Namespace, **flags: Any) -> Settings:
    """The settings with the flags of `add_bus_options` as given, and `flags` (None where not given) over them."""
    from .settings import load_settings

    given = {"nats": "nats", "creds": "creds", "tls_ca": "tls.ca", "tls_cert": "tls.cert", "tls_key": "tls.key"}
    return load_settings({**{key: getattr(args, name, None) for name, key in given.items()}, **flags})


def tls_of(args: Namespace) -> Tls | None:
    """What the flags of `add_bus_options` say of TLS; None where nothing."""
    if not (args.tls_ca or args.tls_cert or args.tls_key):
        return None
    from .tls import Tls

    return Tls(ca=args.tls_ca or "", cert=args.tls_cert or "", key=args.tls_key or "")


def run_async(function: Callable[[*Arguments], Coroutine[Any, Any, int]], *args: *Arguments) -> int:
    """Runs an async command to its end, on uvloop where there is one."""
    import anyio

    from .loops import backend_options

    return anyio.run(function, *args, backend_options=backend_options())
