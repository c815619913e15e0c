"""`callboard doctor`: what works here, what is missing, and the command that mends it."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

import msgspec

from .command import Command, add_json_option, add_state_option, settings_of

if TYPE_CHECKING:
    from .checks import Finding, Surroundings

_MARKS = {"ok": "ok", "absent": "-", "warning": "!", "failed": "FAIL"}


def _configure(parser: ArgumentParser) -> None:
    add_json_option(parser)
    add_state_option(parser)


def _run(args: Namespace) -> int:
    from .checks import Verdict, examine

    given, findings = _surroundings(args)
    findings += examine(given)
    works = all(finding.verdict is not Verdict.FAILED for finding in findings)
    if args.json:
        print(msgspec.json.encode({"works": works, "findings": findings}).decode())
        return 0 if works else 1
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mend = f"  ->  {finding.mend}" if finding.mend else ""
        print(f"{_MARKS[finding.verdict]:<4}  {finding.name:<{width}}  {finding.text}{mend}")
    print("\nall that is needed works" if works else "\nsomething that is needed does not work: see FAIL above")
    return 0 if works else 1


def _surroundings(args: Namespace) -> tuple[Surroundings, list[Finding]]:
    """Nothing is made here, and settings that do not fit are a finding, not the end of the examination."""
    from .checks import Surroundings, failed, ok
    from .daemon_info import find_daemon
    from .errors import ConfigError
    from .folders import Paths
    from .settings import Settings

    paths = Paths.find(args.state_dir)
    try:
        settings = settings_of(args)
        finding = ok("settings", "in order")
    except ConfigError as error:
        settings = Settings()
        finding = failed("settings", str(error), error.hint or "mend the line that it names")
    return Surroundings(paths, settings, find_daemon(paths)), [finding]


doctor = Command(
    "say what works here, what is missing, and what mends it",
    _configure,
    _run,
    details="FAIL is something that is needed and does not work; ! works, but not well; - is not here and need not "
    "be.\nexit codes: 0 all that is needed works, 1 something does not",
)
