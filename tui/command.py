"""`callboard tui`: the app in a terminal."""

from __future__ import annotations

import os
import shutil
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.command import Command, add_bus_options, settings_of, tls_of
from ..runtime.errors import MissingExtra, UsageError
from .pages import PAGES

if TYPE_CHECKING:
    from .recording import Recorder

# By this a server that shows the app elsewhere, in a browser say, has Textual speak to it in place of a terminal.
DRIVER = "TEXTUAL_DRIVER"


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("page", nargs="?", choices=list(PAGES), metavar="PAGE", help=f"begin with {', '.join(PAGES)}")
    parser.add_argument("--theme", metavar="NAME", help="dark, light, contrast, ansi, or one of Textual's")
    parser.add_argument("--record", metavar="FILE", type=Path, help="keep what is shown and typed, as an asciicast")
    parser.add_argument("--replay", metavar="FILE", type=Path, help="play such a file; no daemon is needed")
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    if not (DRIVER in os.environ or (sys.stdin.isatty() and sys.stdout.isatty())):
        raise UsageError("callboard tui needs a terminal", hint="`callboard chat -p` and the other commands need none")
    if args.replay is not None:
        from .recording import play_in_terminal

        return play_in_terminal(args.replay)
    try:
        import textual
    except ImportError as error:
        raise MissingExtra.of("tui", "callboard tui") from error
    del textual
    from .app import CallboardApp
    from .keys import tui_settings
    from .session import Access

    settings = settings_of(args)
    given = dict(settings.tui)
    if args.theme:
        given["theme"] = args.theme
    access = Access(args.nats or "", args.creds or "", args.state_dir, tls_of(args))
    app = CallboardApp(access, tui_settings(given), start=args.page or "", record=_recorder(args.record))
    app.run()
    return app.return_code or 0


def _recorder(path: Path | None) -> Recorder | None:
    if path is None:
        return None
    from .recording import Recorder

    return Recorder(path, *shutil.get_terminal_size())


tui = Command("the app for the terminal: chat, and everything else that the company does", _configure, _run)
