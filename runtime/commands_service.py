"""`callboard service unit`: the systemd unit that runs this installation as a service."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from .command import Command, add_bus_options, paths_of, settings_of

if TYPE_CHECKING:
    from .folders import Paths

# Beyond the drain time: the daemon's last call, then the server's end. As `callboard down` has it.
_STOP_S = 20.0

# Three times what the guardian allows a daemon, so that systemd is the last resort.
_WATCHDOG_FACTOR = 3

# What the service may do. Not here on purpose: RestrictNamespaces and SystemCallFilter, since the sandbox for code
# makes namespaces of its own; MemoryDenyWriteExecute, since kernels are compiled while it runs; PrivateDevices, since a
# GPU is a device, and so ProtectClock, which bars all devices but its own.
_HARDENING = """\
UMask=0077
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={folders}
ProtectHome=read-only
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
"""


def _configure(parser: ArgumentParser) -> None:
    parser.add_argument("action", choices=("unit",), help="unit: print the unit file")
    parser.add_argument("-c", "--company", metavar="FILE", help="the company file that the service is to run")
    parser.add_argument("--user", action="store_true", help="for `systemctl --user`, a service of your own")
    add_bus_options(parser)


def _run(args: Namespace) -> int:
    paths = paths_of(args)
    settings = settings_of(args, company=args.company)
    options: list[str] = []
    for name, value in (("-c", settings.company), ("--creds", settings.creds)):
        if value:
            options += [name, _argument(str(Path(value).expanduser().absolute()))]
    if settings.nats:
        options += ["--nats", _argument(settings.nats)]
    print(
        unit_text(paths, options, settings.drain_timeout, settings.watchdog * _WATCHDOG_FACTOR, user=args.user), end=""
    )
    return 0


def unit_text(paths: Paths, options: list[str], drain_timeout_s: float, watchdog_s: float, *, user: bool) -> str:
    """The unit. Its main process is the daemon in the foreground: systemd itself starts it again."""
    import getpass

    program = f"{_argument(sys.executable)} -P -m callboard.runtime.cli"
    folders = {"STATE": paths.state, "DATA": paths.data, "CACHE": paths.cache, "RUNTIME": paths.runtime}
    environment = "".join(f"Environment={_quoted(f'CALLBOARD_{name}_DIR={path}')}\n" for name, path in folders.items())
    owner = "" if user else f"User={getpass.getuser()}\n"
    hardening = _HARDENING.format(folders=" ".join(_quoted(str(path)) for path in folders.values()))
    # A user's own service manager may not open what these need.
    if user:
        unavailable = ("ProtectKernelModules", "ProtectKernelLogs", "ProtectHostname")
        hardening = "".join(line for line in hardening.splitlines(True) if not line.startswith(unavailable))
    return f"""\
# Written by `callboard service unit`. Put it into {"~/.config/systemd/user" if user else "/etc/systemd/system"}
# as callboard.service, then: systemctl{" --user" if user else ""} enable --now callboard
[Unit]
Description=Callboard, an actor runtime for language models
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
NotifyAccess=main
ExecStart={program} {" ".join(["up", *options])}
ExecReload={program} reload
{owner}{environment}WorkingDirectory={_escaped(str(paths.state))}
# The daemon ends what it started, in order; what it leaves is killed.
KillMode=mixed
TimeoutStartSec=120
TimeoutStopSec={drain_timeout_s + _STOP_S:g}
WatchdogSec={watchdog_s:g}
Restart=on-failure
RestartSec=1
# A mistake in the configuration mends itself by no restart.
RestartPreventExitStatus=2
LimitNOFILE=65536
{hardening}
[Install]
WantedBy={"default.target" if user else "multi-user.target"}
"""


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _argument(text: str) -> str:
    """A word of a command line, in which systemd replaces variables too."""
    return _quoted(text.replace("$", "$$"))


def _quoted(text: str) -> str:
    """A word of a unit file: systemd reads quotes, backslashes and percent signs in it."""
    text = _escaped(text)
    if not any(character in text for character in " \t\"'\\;"):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


service = Command(
    "print the systemd unit that runs this installation as a service",
    _configure,
    _run,
    details="Where it lies and how it is used: docs/operations.md. The daemon tells systemd when it is ready, what it "
    "does,\nthat it lives, and when it reloads or stops.",
)
