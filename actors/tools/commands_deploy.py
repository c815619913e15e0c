"""`callboard tool deploy` and what goes with it: tools sent to another node, their versions, and the key that signs."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.command import Command, add_bus_options, add_json_option, run_async
from ...runtime.commands_actors import client_of, to_json
from ...runtime.tables import print_table

if TYPE_CHECKING:
    from ...schemas.tool_deploy import Deployment


def _configure_deploy(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="a .py file, or a folder with a pyproject.toml")
    parser.add_argument("--on", default="", metavar="LABELS", help="a node that has these, by commas (default: any)")
    parser.add_argument("--name", default="", metavar="SET", help="what the set is called (default: the file's name)")
    parser.add_argument("--requirements", type=Path, metavar="FILE", help="more packages that it needs, one a line")
    parser.add_argument("--version", default="", metavar="V", help="its version (default: as it says, or by content)")
    parser.add_argument("--beside", action="store_true", help="keep calling what runs; the new one is NAME.TOOL@V")
    add_json_option(parser)
    add_bus_options(parser)


def _deploy(args: Namespace) -> int:
    from ...runtime.commands_node import labels_of
    from .deploy.client import deploy
    from .deploy.gather import gather
    from .deploy.keys import key_file, load_signer

    signer = load_signer(key_file())
    gathered = gather(args.path, name=args.name, version=args.version, requirements=args.requirements)
    manifest = gathered.manifest
    size = sum(file.size for file in manifest.files)
    print(f"sending {manifest.name} {manifest.version}: {len(manifest.files)} files, {size} bytes", file=sys.stderr)

    async def run() -> int:
        async with client_of(args) as bus:
            done = await deploy(bus, gathered, signer, labels=labels_of(args.on), beside=args.beside)
        if args.json:
            print(to_json(done))
        else:
            print(f"{done.name} {manifest.version} runs on node {done.node}")
        return 0

    return run_async(run)


deploy = Command(
    "put tools on another node, in an environment of their own",
    _configure_deploy,
    _deploy,
    details="What it needs is what its pyproject.toml, its `# /// script` block or --requirements say. The node takes\n"
    "it if its configuration allows your key: `callboard node --allow-tools-from KEY`. See docs/tools-deploy.md.\n\n"
    "  callboard tool key new                       once: a key to sign with\n"
    "  callboard tool deploy my_tools.py --on gpu\n"
    "  callboard tool call my_tools.count text=abc",
)


def _configure_deployments(parser: ArgumentParser) -> None:
    add_json_option(parser)
    add_bus_options(parser)


def _deployments(args: Namespace) -> int:
    from ...schemas.tool_deploy import ListDeployments
    from .deploy.client import deployments

    async def run() -> int:
        async with client_of(args) as bus:
            found = (await (await deployments(bus)).ask(ListDeployments())).deployments
        if args.json:
            print(to_json(found))
        else:
            _print(found)
        return 0

    return run_async(run)


deployments = Command("list the tools that are deployed, and where they run", _configure_deployments, _deployments)


def _configure_switch(parser: ArgumentParser) -> None:
    parser.add_argument("version", metavar="NAME@VERSION", help="the version that calls are to go to")
    parser.add_argument("--keep", action="store_true", help="let the other versions run on beside it")
    add_bus_options(parser)


def _switch(args: Namespace) -> int:
    from ...runtime.errors import UsageError
    from ...schemas.tool_deploy import SwitchTools
    from .deploy.client import deployments
    from .deploy.deployments import START_TIMEOUT_S

    name, _, version = args.version.partition("@")
    if not version:
        raise UsageError(f"'{args.version}' names no version", hint="write it as NAME@VERSION")

    async def run() -> int:
        async with client_of(args) as bus:
            there = await deployments(bus)
            done = await there.ask(SwitchTools(name, version, args.keep), timeout=START_TIMEOUT_S)
        print(f"{done.name} is version {done.current} from now on")
        return 0

    return run_async(run)


switch = Command("let calls go to another version of deployed tools; the old one drains", _configure_switch, _switch)


def _configure_undeploy(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME[@VERSION]", help="a set, or one version of it")
    add_bus_options(parser)


def _undeploy(args: Namespace) -> int:
    from ...schemas.tool_deploy import UndeployTools
    from .deploy.client import deployments
    from .deploy.deployments import START_TIMEOUT_S

    name, _, version = args.name.partition("@")

    async def run() -> int:
        async with client_of(args) as bus:
            await (await deployments(bus)).ask(UndeployTools(name, version), timeout=START_TIMEOUT_S)
        print(f"{args.name} is not deployed any more")
        return 0

    return run_async(run)


undeploy = Command("end deployed tools; calls that they have may finish", _configure_undeploy, _undeploy)


def _configure_key(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=("new", "show"), help="make a key, or print its public half")


def _key(args: Namespace) -> int:
    from .deploy.keys import key_file, load_signer, new_signer

    path = key_file()
    if args.what == "new":
        signer = new_signer(path)
        print(f"kept in {path}; a node takes your tools with --allow-tools-from and this key:", file=sys.stderr)
    else:
        signer = load_signer(path)
    print(signer.public)
    return 0


key = Command(
    "the key that you sign deployed tools with",
    _configure_key,
    _key,
    details="Whoever has the key file can run code on every node that allows the key: keep it as you keep an SSH key.",
)


def _print(found: tuple[Deployment, ...]) -> None:
    rows: list[tuple[str, ...]] = [("NAME", "VERSION", "OTHERS", "STATE", "NODE", "LABELS", "SIGNER")]
    for one in found:
        others = ",".join(version.version for version in one.versions if version.version != one.current)
        signer = one.versions[0].signer if one.versions else ""
        rows.append((one.name, one.current, others, one.state, one.node or "-", ",".join(one.labels), signer))
    print_table(rows)
