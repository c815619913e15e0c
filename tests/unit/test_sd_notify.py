"""What goes to a service manager's socket, and what the environment says of it."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

import pytest

from callboard.runtime.sd_notify import ServiceManager, for_successor


@pytest.mark.parametrize(
    "kind", ["path", pytest.param("abstract", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))]
)
def test_a_message_is_one_datagram_of_lines(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"callboard-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name if kind == "path" else f"\0{name}")
        manager = ServiceManager(name if kind == "path" else f"@{name}")
        manager.tell(READY=1, STATUS="two\nlines")
        assert listener.recv(4096) == b"READY=1\nSTATUS=two lines"
        manager.close()


def test_its_variables_are_taken_and_not_handed_on() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "LANG": "C"}
    manager = ServiceManager.from_environment(environment)
    assert manager.watchdog_s == 3.0
    assert environment == {"LANG": "C"}
    manager.close()


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}
    manager = ServiceManager.from_environment(environment)
    assert manager.watchdog_s == 0.0
    manager.close()


def test_a_watchdog_meant_for_us_is_meant_for_who_takes_our_place() -> None:
    environment = {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    for_successor(environment)
    assert ServiceManager.from_environment(environment).watchdog_s == 3.0


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens", "vsock:2:1"])
def test_a_manager_that_is_not_there_is_no_error(address: str) -> None:
    manager = ServiceManager(address)
    manager.tell(READY=1)
    manager.close()
