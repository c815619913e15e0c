"""`callboard tool`: what the company's tools are, calling one, offering one's own. Each sub-command has its module."""

from __future__ import annotations

import importlib
from argparse import ArgumentParser, Namespace

from ...runtime.command import Command

# The sub-commands by name, each a `Command` at `module:attribute` beside this file.
SUBCOMMANDS = {
    "list": "commands_list:list_tools",
    "show": "commands_list:show",
    "call": "commands_call:call",
    "serve": "commands_serve:serve",
    "deploy": "commands_deploy:deploy",
    "deployments": "commands_deploy:deployments",
    "switch": "commands_deploy:switch",
    "undeploy": "commands_deploy:undeploy",
    "key": "commands_deploy:key",
    "mcp": "mcp.commands_mcp:mcp",
}


def _command(name: str) -> Command:
    module, _, attribute = SUBCOMMANDS[name].partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), attribute)


def _configure(parser: ArgumentParser) -> None:
    from argparse import RawDescriptionHelpFormatter

    actions = parser.add_subparsers(dest="action", metavar="|".join(SUBCOMMANDS), required=True)
    for name in SUBCOMMANDS:
        command = _command(name)
        command.configure(
            actions.add_parser(
                name,
                help=command.summary,
                description=command.summary,
                epilog=command.details,
                formatter_class=RawDescriptionHelpFormatter,
            )
        )


def _run(args: Namespace) -> int:
    return _command(args.action).run(args)


tool = Command(
    "the company's tools: list, show, call, serve your own, deploy them elsewhere",
    _configure,
    _run,
    details="examples:\n"
    "  callboard tool list 'read a file'\n"
    "  callboard tool call calculator expression='2 + 2'\n"
    "  callboard tool serve my_tools.py\n"
    "  callboard tool deploy my_tools.py --on gpu",
)
