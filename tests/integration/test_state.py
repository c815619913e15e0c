"""`callboard state`: what is exported while the company runs comes back whole, and no earlier owner writes over it."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import anyio
import msgspec
import pytest
from board import Board
from durable import Account, Deposit, GetBalance, Ledger
from own_server import OwnServer, own_server

from callboard.runtime import event_log, store
from callboard.runtime.bus import BusOptions
from callboard.runtime.client import Client
from callboard.runtime.errors import BackupDamaged, Fenced, StateInUse, StoreFull
from callboard.runtime.event_log import Appended, EventLog
from callboard.runtime.log_reading import Event
from callboard.runtime.node import Node
from callboard.runtime.state_backup import export, import_
from callboard.runtime.state_file import MAGIC, Batch, Reader, State
from callboard.runtime.state_survey import Survey, read_all, remove, saved_of, survey
from callboard.schemas.store import NIL, LogBatch, Saved

pytestmark = pytest.mark.anyio


def quiet(done: int, total: int) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    with own_server(tmp_path, "--jetstream", "--store_dir", str(tmp_path / "js")) as server:
        yield server


@pytest.fixture
def other(tmp_path: Path) -> Iterator[OwnServer]:
    """A server with an empty store."""
    folder = tmp_path / "other"
    folder.mkdir()
    with own_server(folder, "--jetstream", "--store_dir", str(folder / "js")) as server:
        yield server


@asynccontextmanager
async def joined(server: OwnServer) -> AsyncIterator[Client]:
    """A company of one node, which is its own daemon."""
    async with Node("main", bus=BusOptions(server.url, node_id="main")) as node:
        yield Client(node)


@pytest.fixture
async def bus(server: OwnServer) -> AsyncIterator[Client]:
    async with joined(server) as bus:
        yield bus


async def furnish(bus: Client) -> None:
    """Two actors' states, one of them empty so far, and three logs: plain, compacted, and without events."""
    for name, amount in (("a", 5), ("shop.b", 7)):
        account = Account()
        snapshots = store.Snapshots(bus.node.jetstream, name, Account, 10.0)
        await snapshots.recover(account, Ledger)
        account.amount = amount
        if name == "a":
            await snapshots.save(account)
    log = await EventLog.open(bus.node, "run.1", int, own=True)
    for n in range(10):
        await log.append(n, -n, key=f"k{n}")
    short = await EventLog.open(bus.node, "run.2", int)
    for n in range(5):
        await short.append(n)
    await short.compact(100)
    await short.append(101)
    await EventLog.open(bus.node, "run.3", int, own=True)


async def contents(bus: Client) -> tuple[dict[str, tuple[str, bytes]], dict[str, list[Event[int]]]]:
    """Everything that is stored, whoever owns it: states by name, events with number and time."""
    states: dict[str, tuple[str, bytes]] = {}
    async for stored in read_all(bus.node.jetstream, store.STREAM, f"{store.SUBJECTS}>", 1):
        saved = saved_of(stored)
        states[stored.subject] = saved.kind, bytes(saved.state)
    logs: dict[str, list[Event[int]]] = {}
    for name in await event_log.list_logs(bus.node):
        log = await EventLog.open(bus.node, name, int)
        logs[name] = [event async for event in log.read()]
    return states, logs


async def test_what_is_exported_comes_back_with_its_numbers_and_times(
    bus: Client, other: OwnServer, tmp_path: Path
) -> None:
    await furnish(bus)
    file = tmp_path / "backup"
    moved = await export(bus.node.jetstream, file, quiet)
    assert (moved.states, moved.logs, moved.events) == (2, 3, 22)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = await contents(bus)
    async with joined(other) as there:
        assert await import_(there, file, quiet) == moved
        assert await contents(there) == before
        assert [event.number for event in before[1]["run.2"]] == [6, 7]
        run = await EventLog.open(there.node, "run.1", int)
        assert await run.append(3, -3, key="k3") == Appended(7, 8, duplicate=True)
        assert (await run.append(11)).first == 21
        account = await there.node.spawn(Account, name="a")
        assert (await account.ask(GetBalance())).amount == 5
        again = tmp_path / "again"
        await export(there.node.jetstream, again, quiet)
        assert (await survey(there.node.jetstream)).logs[0].last == 21


async def test_an_export_is_of_one_moment_while_all_goes_on(bus: Client, tmp_path: Path) -> None:
    """Each event is appended before the state that counts it is saved: no file may have it the other way round."""
    jetstream = bus.node.jetstream
    log = await EventLog.open(bus.node, "run", int, own=True)
    account, snapshots = Account(), store.Snapshots(jetstream, "a", Account, 10.0)
    await snapshots.recover(account, Ledger)

    async def work() -> None:
        while True:
            account.amount = (await log.append(account.amount)).last
            await snapshots.save(account)
            if account.amount % 40 == 0:
                account.amount = await log.compact(account.amount)
                await snapshots.save(account)

    async with anyio.create_task_group() as group:
        group.start_soon(work)
        for round_ in range(8):
            file = tmp_path / f"backup-{round_}"
            while account.amount < round_ * 30:
                await anyio.lowlevel.checkpoint()
            await export(jetstream, file, quiet)
            numbers: list[int] = []
            amount = 0
            with Reader(file) as reader:
                for record in reader.records():
                    if isinstance(record, Batch):
                        batch = msgspec.msgpack.decode(record.data, type=LogBatch)
                        numbers += range(batch.first, batch.first + len(batch.events))
                    elif isinstance(record, State):
                        state = msgspec.msgpack.decode(record.data, type=Saved).state
                        amount = msgspec.msgpack.decode(state, type=Ledger).amount if state != NIL else 0
            assert numbers[-1] in (amount, amount + 1)
        group.cancel_scope.cancel()


async def test_what_is_there_is_not_overwritten_unasked(bus: Client, tmp_path: Path) -> None:
    await furnish(bus)
    file = tmp_path / "backup"
    await export(bus.node.jetstream, file, quiet)
    await (await EventLog.open(bus.node, "run.1", int)).append(77)
    before = await survey(bus.node.jetstream)
    with pytest.raises(StateInUse, match=r"a, run\.1") as caught:
        await import_(bus, file, quiet)
    assert "--replace" in caught.value.hint
    after = await survey(bus.node.jetstream)
    assert [one.revision for one in after.states] == [one.revision for one in before.states]
    assert [one.last for one in after.logs] == [one.last for one in before.logs]
    await (await EventLog.open(bus.node, "elsewhere", int)).append(1)
    await import_(bus, file, quiet, replace=True)
    lasts = [(one.name, one.last) for one in (await survey(bus.node.jetstream)).logs]
    assert lasts == [("elsewhere", 1), ("run.1", 20), ("run.2", 7), ("run.3", 0)]


async def test_what_runs_or_is_followed_is_not_replaced(bus: Client, tmp_path: Path) -> None:
    account = await bus.node.spawn(Account, name="a")
    await account.ask(Deposit(5))
    log = await EventLog.open(bus.node, "run", int)
    await log.append(1)
    file = tmp_path / "backup"
    await export(bus.node.jetstream, file, quiet)
    for attempt in (import_(bus, file, quiet, replace=True), remove(bus, "a", "state")):
        with pytest.raises(StateInUse, match="a runs"):
            await attempt
    await bus.node.stop("a")
    async with aclosing(log.follow()) as events:
        assert (await anext(events)).value == 1
        for attempt in (import_(bus, file, quiet, replace=True), remove(bus, "run", "log")):
            with pytest.raises(StateInUse, match="followed"):
                await attempt
    await import_(bus, file, quiet, replace=True)
    await remove(bus, "a", "state")
    await remove(bus, "run", "log")
    assert await survey(bus.node.jetstream) == Survey((), ())


async def test_a_changed_or_cut_file_is_refused_before_anything_is_touched(bus: Client, tmp_path: Path) -> None:
    await furnish(bus)
    file = tmp_path / "backup"
    await export(bus.node.jetstream, file, quiet)
    whole = file.read_bytes()
    before = await contents(bus)
    for length in range(0, len(whole), 97):
        file.write_bytes(whole[:length])
        with pytest.raises(BackupDamaged, match=r"cut short|no export"):
            await import_(bus, file, quiet, replace=True)
    for position in range(0, len(whole), 61):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(BackupDamaged):
            await import_(bus, file, quiet, replace=True)
    name = whole.index(b"run.1")
    file.write_bytes(whole[:name] + b"\xc4" + whole[name + 1 :])  # no UTF-8
    with pytest.raises(BackupDamaged):
        await import_(bus, file, quiet, replace=True)
    file.write_bytes(whole + b"more")
    with pytest.raises(BackupDamaged):
        await import_(bus, file, quiet, replace=True)
    file.write_bytes(MAGIC.replace(b"1", b"2") + whole[len(MAGIC) :])
    with pytest.raises(BackupDamaged, match="another version"):
        await import_(bus, file, quiet, replace=True)
    assert await contents(bus) == before


@pytest.mark.parametrize("wiped", [False, True])
async def test_owners_from_before_an_import_are_fenced_off(server: OwnServer, tmp_path: Path, wiped: bool) -> None:
    """Also those whose own writes are the last that the file knows, and where the store began anew meanwhile."""
    async with joined(server) as bus:
        account, snapshots = Account(), store.Snapshots(bus.node.jetstream, "a", Account, 10.0)
        await snapshots.recover(account, Ledger)
        await snapshots.save(account)
        log = await EventLog.open(bus.node, "run", int, own=True)
        guest = await EventLog.open(bus.node, "run", int)
        await log.append(1)
        file = tmp_path / "backup"
        await export(bus.node.jetstream, file, quiet)
        await snapshots.save(account)
        await log.append(2)
        assert await guest.append(3, key="late") == Appended(3, 3)
        if wiped:
            server.kill()
            shutil.rmtree(tmp_path / "js")
            server.start()
        await import_(bus, file, quiet, replace=not wiped)
        for _ in range(2):
            with pytest.raises(Fenced):
                await log.append(4)
            with pytest.raises(Fenced):
                await snapshots.save(account)
        # Who owns nothing goes on where the file ends, and what the file does not hold was never there.
        assert await guest.append(5) == Appended(2, 2)
        assert await guest.append(3, key="late") == Appended(3, 3)
        assert [event.value async for event in guest.read()] == [1, 5, 3]
        later = store.Snapshots(bus.node.jetstream, "a", Account, 10.0)
        await later.recover(account, Ledger)
        assert later.epoch == 3


async def test_an_import_that_is_cut_short_is_carried_through_by_the_next(
    bus: Client, other: OwnServer, tmp_path: Path
) -> None:
    await furnish(bus)
    file = tmp_path / "backup"
    await export(bus.node.jetstream, file, quiet)
    before = await contents(bus)
    steps = 0

    def break_off(done: int, total: int) -> None:
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise KeyboardInterrupt

    async with joined(other) as there:
        for allowed in (0, 3, 7, 11, 16):
            steps = allowed
            with pytest.raises(KeyboardInterrupt):
                await import_(there, file, break_off)
            assert (await survey(there.node.jetstream)).importing
            with pytest.raises(StateInUse, match="cut short"):
                await export(there.node.jetstream, tmp_path / "half", quiet)
        await import_(there, file, quiet)
        assert not (await survey(there.node.jetstream)).importing
        assert await contents(there) == before


async def test_an_export_to_a_full_disk_keeps_the_old_file(bus: Client, small_disk: Path) -> None:
    await furnish(bus)
    file = small_disk / "backup"
    await export(bus.node.jetstream, file, quiet)
    old = file.read_bytes()
    log = await EventLog.open(bus.node, "large", bytes)
    for _ in range(12):
        await log.append(b"x" * 900_000)
    with pytest.raises(StoreFull, match="no room"):
        await export(bus.node.jetstream, file, quiet)
    assert file.read_bytes() == old
    assert os.listdir(small_disk) == ["backup"]


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    board = Board.at(tmp_path_factory.mktemp("state"))
    board.up()
    yield board
    board.close()


def test_the_command_lists_exports_imports_and_removes(board: Board, tmp_path: Path) -> None:
    assert board.run("state").stdout == "nothing is stored\n"
    page = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n{FILL}"
    done = subprocess.run(
        [sys.executable, "-c", page], env={**os.environ, **board.environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    listed = json.loads(board.run("state", "--json").stdout)
    assert [(one["name"], one["kind"], one["saves"]) for one in listed["states"]] == [("a", "Account", 2)]
    assert [(one["name"], one["first"], one["last"]) for one in listed["logs"]] == [("run.1", 1, 2)]
    file = str(tmp_path / "backup")
    exported = board.run("state", "export", file)
    assert exported.returncode == 0, exported.stderr
    assert "1 states, 1 logs with 2 events" in exported.stdout

    refused = board.run("state", "import", file)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "--replace" in refused.stderr
    imported = board.run("state", "--json", "--state-dir", str(board.paths.state), "import", file, "--replace")
    assert json.loads(imported.stdout)["events"] == 2

    unconfirmed = board.run("state", "rm", "a")
    assert unconfirmed.returncode == 2
    assert "--yes" in unconfirmed.stderr
    assert board.run("state", "rm", "nothing", "--yes").returncode == 1
    for name in ("a", "run.1"):
        assert board.run("state", "rm", name, "--yes").returncode == 0
    assert board.run("state").stdout == "nothing is stored\n"
    assert board.run("state", "import", file).returncode == 0
    assert "run.1" in board.run("state").stdout


FILL = """
import anyio, callboard
from durable import Account, Deposit
from callboard import EventLog

async def main():
    async with callboard.connect() as bus:
        account = await bus.host(Account, name="a")
        await account.ask(Deposit(3))
        log = await EventLog.open(bus.node, "run.1", int)
        await log.append(1, 2)

anyio.run(main)
"""


def test_without_a_daemon_the_command_says_how_to_start_one(tmp_path: Path) -> None:
    board = Board.at(tmp_path)
    for words in (["state"], ["state", "export", "f"], ["state", "import", "f"], ["state", "rm", "x", "--yes"]):
        done = board.run(*words)
        assert done.returncode == 3
        assert "callboard up" in done.stderr


@pytest.mark.slow
def test_export_and_import_take_constant_memory(board: Board, tmp_path: Path) -> None:
    peaks: dict[int, list[int]] = {}
    for mib in (8, 256):
        filled = subprocess.run(
            [sys.executable, "-c", BULK, str(mib)], env={**os.environ, **board.environment}, timeout=50
        )
        assert filled.returncode == 0
        file = str(tmp_path / f"backup-{mib}")
        peaks[mib] = [
            peak_kib(board.start("state", "export", file)),
            peak_kib(board.start("state", "import", file, "--replace")),
        ]
    assert all(large - small < 48 << 10 for small, large in zip(peaks[8], peaks[256], strict=True)), peaks


def peak_kib(process: subprocess.Popen[str]) -> int:
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss


BULK = """
import os, sys, anyio, callboard
from callboard import EventLog

async def main():
    async with callboard.connect() as bus:
        log = await EventLog.open(bus.node, "bulk")
        for _ in range(int(sys.argv[1]) * 2):
            await log.append(os.urandom(1 << 19))

anyio.run(main)
"""
