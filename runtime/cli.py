"""`callboard COMMAND ...`: finds the command, runs it, and turns errors into one line, a hint and an exit code.

`callboard --help` lists commands without importing any, and `callboard COMMAND --help` imports that one only.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .command import Command
    from .registry import Registry

OK = 0
FAILED = 1
USAGE = 2
NOT_REACHABLE = 3
INTERRUPTED = 130

ABOUT = "an actor runtime on a message bus that takes a language model through its whole life"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name) and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough, `head` say. What Python flushes at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        return _report(error)


def _run(arguments: list[str]) -> int:
    from .registry import registry

    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _list(registry())
    if arguments[0] in ("-V", "--version"):
        from .. import __version__

        print(f"callboard {__version__}")
        return OK
    name, *rest = arguments
    command = _find(name, registry())
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"callboard {name}",
        description=command.summary,
        epilog=command.details or None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(parser)
    return command.run(parser.parse_args(rest))


def _list(found: Registry) -> int:
    summaries = found.summaries()
    width = max(map(len, summaries), default=0)
    print(f"usage: callboard COMMAND ...\n\nCallboard: {ABOUT}.\n\ncommands:")
    for name, summary in summaries.items():
        print(f"  {name:<{width}}  {summary}".rstrip())
    print("\n`callboard COMMAND --help` says more of one; `callboard --version` is the version.")
    return OK


def _find(name: str, found: Registry) -> Command:
    from .registry import COMMANDS

    commands = found.entries(COMMANDS)
    entry = commands.get(name)
    if entry is None:
        from .errors import UsageError
        from .matching import did_you_mean

        guess = did_you_mean(name, commands)
        kind = "option" if name.startswith("-") else "command"
        raise UsageError(
            f"there is no {kind} '{name}'",
            hint=f"did you mean `callboard {guess}`?" if guess else "`callboard --help` lists the commands",
        )
    try:
        return entry.load()
    except ImportError as error:
        from .errors import UsageError
        from .extras import missing_extra

        missing = missing_extra(error, f"`callboard {name}`")
        raise missing or UsageError(f"`callboard {name}` cannot be loaded: {error}") from error


def _report(error: Exception) -> int:
    """Prints what the user should know of an error; an unexpected one is raised, since its traceback is its report."""
    from .errors import CallboardError, NotReachable, UsageError
    from .exception_groups import leaves

    single, *others = leaves(error)
    if not isinstance(single, CallboardError) or not all(isinstance(leaf, CallboardError) for leaf in others):
        raise error
    print(f"callboard: {single}", file=sys.stderr)
    if single.hint:
        print(f"  {single.hint}", file=sys.stderr)
    if single.detail and os.environ.get("CALLBOARD_DEBUG"):
        print(single.detail, file=sys.stderr)
    if isinstance(single, UsageError):
        return USAGE
    return NOT_REACHABLE if isinstance(single, NotReachable) else FAILED


if __name__ == "__main__":
    sys.exit(main())
