"""The Python client, awaited and blocking, against a daemon that runs as users run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import psutil
import pytest
from antics import Done, FragileConfig, Hold, Open
from board import Board, gone, install_antics, running

import callboard
from callboard import Message, Restart
from callboard.actors.bench.counter import Counter
from callboard.runtime import census
from callboard.runtime.client import Client
from callboard.runtime.errors import (
    ConfigError,
    Forbidden,
    HandlerFailed,
    NameTaken,
    NoSuchActor,
    NotReachable,
    UnknownKind,
    UsageError,
)
from callboard.schemas.bench import Add, Count, Follow, Note, Piece, Report
from callboard.schemas.runtime import Tapped

anyio_test = pytest.mark.anyio


class News(Message, frozen=True, tag="test.news"):
    text: str


class Weather(Message, frozen=True, tag="test.weather"):
    degrees: float


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("client")
    with running(base, PYTHONPATH=str(install_antics(base / "site"))) as board:
        yield board


@pytest.fixture
def board(daemon: Board, monkeypatch: pytest.MonkeyPatch) -> Board:
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    return daemon


@pytest.fixture
async def bus(board: Board) -> AsyncIterator[Client]:
    """A connection; what a test spawned through the daemon is stopped after it."""
    async with callboard.connect() as bus:
        yield bus
        for info in await bus.actors():
            if "." not in info.address:
                await bus.stop(info.address, timeout=0.1)


# Asking


@anyio_test
async def test_it_finds_the_daemon_and_asks_tells_and_streams(bus: Client) -> None:
    counter = await bus.spawn("counter", name="c")
    assert await counter.ask(Add(3)) == Count(3)
    assert await bus.actor("c").ask(Add(4), timeout=2.0) == Count(7)
    await counter.tell(Note(2))
    assert (await counter.ask(Report())).count == 2
    async with counter.stream(Follow(5)) as pieces:
        assert [type(piece) async for piece in pieces] == [Piece] * 5
        assert pieces.result == Count(5)


@anyio_test
async def test_the_daemon_is_found_by_its_state_folder_and_by_the_servers_url(board: Board) -> None:
    async with callboard.connect(state_dir=str(board.paths.state), name="by-folder") as bus:
        assert "by-folder" in {node.node for node in await bus.nodes()}
    with pytest.raises(NotReachable, match="refuses these credentials"):
        async with callboard.connect(nats=board.info().url):
            pass


@anyio_test
async def test_without_a_daemon_it_says_so_and_where_it_looked(tmp_path: Path, nats_server: Any) -> None:
    with pytest.raises(NotReachable, match="callboard-state"):
        async with callboard.connect():
            pass
    async with callboard.connect(nats=nats_server.url) as bus:
        for call in (bus.nodes, bus.actors):
            with pytest.raises(NotReachable, match="no daemon is on the bus"):
                await call()
        with pytest.raises(NotReachable, match="no daemon"):
            await bus.spawn("counter")


@anyio_test
async def test_what_the_block_raises_is_raised_as_it_is(bus: Client) -> None:
    with pytest.raises(ZeroDivisionError):
        async with callboard.connect(), bus.tap(), bus.listen("topic.>"):
            raise ZeroDivisionError


@anyio_test
async def test_a_name_that_is_in_use_is_refused_and_its_owner_keeps_its_credentials(board: Board) -> None:
    creds = board.paths.state / "creds"
    before = {path: path.read_bytes() for path in creds.iterdir()}
    with pytest.raises(NameTaken):
        async with callboard.connect(name="main"):
            pass
    assert {path: path.read_bytes() for path in creds.iterdir()} == before


# Publishing and listening


@anyio_test
async def test_listeners_get_the_types_they_want_decoded(bus: Client) -> None:
    async with (
        callboard.connect() as other,
        other.listen("topic.>", News, Weather) as typed,
        bus.listen("topic.news") as plain,
    ):
        await bus.publish("topic.news", News("it works"))
        await bus.publish_raw("topic.odd.one", b'{"type": "something.else"}')
        await bus.publish_raw("topic.weather", b'{"type": "test.weather", "degrees": 21}')
        assert await anext(typed) == ("topic.news", News("it works"))
        assert await anext(typed) == ("topic.weather", Weather(21.0))
        assert typed.skipped == 1
        assert await anext(plain) == ("topic.news", {"type": "test.news", "text": "it works"})


@anyio_test
async def test_a_forbidden_subject_is_refused_at_once(bus: Client) -> None:
    with pytest.raises(Forbidden, match=r"may not publish to foo\.bar") as refused:
        await bus.publish("foo.bar", News("hello"))
    assert "topic." in refused.value.hint
    with pytest.raises(Forbidden):
        await bus.publish("foo.bar", News("hello again"))
    with pytest.raises(Forbidden):
        await bus.publish_raw("foo.bar", b"{}")
    with pytest.raises(Forbidden, match=r"may not listen to inbox\.main\.>"):
        async with bus.listen("inbox.main.>"):
            pass
    async with bus.listen("topic.>"):  # and the connection goes on
        await bus.publish("topic.news", News("hello"))


@anyio_test
async def test_a_tap_shows_what_actors_get_here_and_elsewhere(bus: Client) -> None:
    away = await bus.spawn("counter", name="away")
    here = await bus.host(Counter, name="here")
    async with bus.tap("*") as seen, callboard.connect() as other:
        await other.actor("away").ask(Add(1))
        subject, tapped = await anext(seen)
        assert subject == "tap.away"
        assert isinstance(tapped, Tapped)
        assert msgspec.msgpack.decode(tapped.message, type=Add) == Add(1)
        await here.ask(Add(2))  # never leaves this process
        assert (await anext(seen))[0] == "tap.here"
    await away.ask(Add(1))
    assert await away.ask(Add(1)) == Count(3)


@anyio_test
async def test_who_listens_to_a_tap_in_the_actors_own_process_does_not_disturb_it(bus: Client) -> None:
    here = await bus.host(Counter, name="here")
    async with bus.tap("here"), bus.listen("tap.*") as plain, bus.listen("tap.>", Tapped) as typed:
        assert await here.ask(Add(2)) == Count(2)
        subject, shown = await anext(plain)
        assert (subject, shown["message"]) == ("tap.here", {"type": "bench.add", "amount": 2, "padding": ""})
        assert msgspec.msgpack.decode((await anext(typed))[1].message, type=Add) == Add(2)
        # What cannot be encoded is no matter within a process, and not shown.
        assert await here.ask(Add(1 << 70)) == Count(2 + (1 << 70))
        await here.ask(Add(1))
        assert (await anext(plain))[1]["message"]["amount"] == 1


# Spawning and stopping


@anyio_test
async def test_actors_and_nodes_are_listed_wherever_they_live(bus: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "ACTORS_PER_PAGE", 2)
    names = sorted(["a", "b", "c", "d", "e"])
    for name in names:
        await bus.spawn("counter", name=name, restart=Restart.TEMPORARY)
    await bus.spawn("counter", name="apart", process=True)
    await bus.host(Counter, name="mine")
    found = {info.address: info for info in await bus.actors()}
    assert list(found) == sorted([*names, "apart", "mine", "node.main", "node.apart", f"node.{bus.node.name}"])
    assert (found["a"].node, found["apart"].node, found["mine"].node) == ("main", "apart", bus.node.name)
    assert found["mine"].pid == os.getpid() != found["a"].pid != found["apart"].pid
    assert [info.address for info in await bus.actors("apart")] == ["apart"]
    assert {node.node for node in await bus.nodes()} >= {"main", "apart", bus.node.name}


@anyio_test
async def test_names_are_made_up_where_none_is_given(bus: Client) -> None:
    refs = [await bus.spawn("counter"), await bus.host(Counter), await bus.spawn("counter", process=True)]
    assert len({ref.address for ref in refs}) == 3
    assert all(ref.address.startswith("counter-") for ref in refs)


@anyio_test
async def test_an_actor_hosted_here_is_reached_from_another_process(bus: Client, board: Board) -> None:
    mine = await bus.host(Counter, name="mine")
    await mine.ask(Add(1))
    message = '{"type": "bench.add", "amount": 2}'
    done = await anyio.to_thread.run_sync(board.run, "publish", "--answer", "actor.mine", message)
    assert (done.stdout, done.stderr) == ('{"type":"bench.count","value":3}\n', "")


@anyio_test
async def test_a_killed_process_comes_back_and_a_stopped_one_does_not(bus: Client) -> None:
    await bus.spawn("counter", name="apart", process=True)
    await bus.actor("apart").ask(Add(5))
    (first,) = await bus.actors("apart")
    async with bus.listen("nodes.hello") as hellos:
        os.kill(first.pid, signal.SIGKILL)
        async for _, hello in hellos:
            if hello["info"]["roots"] == ["apart"]:
                break
    assert await bus.actor("apart").ask(Add(1)) == Count(1)
    (second,) = await bus.actors("apart")
    assert (second.restarts, second.pid == first.pid) == (1, False)

    process = psutil.Process(second.pid)
    await bus.stop("apart")
    assert await anyio.to_thread.run_sync(gone, [process])
    assert await bus.actors("apart") == []
    with pytest.raises(NoSuchActor):
        await bus.actor("apart").ask(Add(1))
    with pytest.raises(NoSuchActor):
        await bus.stop("apart")


@anyio_test
async def test_stop_ends_what_another_client_hosts_but_no_node(bus: Client) -> None:
    async with callboard.connect() as other:
        await other.host(Counter, name="theirs")
        await bus.stop("theirs")
        assert await bus.actors("theirs") == []
        with pytest.raises(UsageError, match="ends with its process"):
            await bus.stop("node.main")


@anyio_test
@pytest.mark.parametrize("process", [False, True])
async def test_a_spawn_that_fails_says_why_and_the_daemon_goes_on(bus: Client, tmp_path: Path, process: bool) -> None:
    missing = str(tmp_path / "missing")
    for config, error, words in (
        ("{", ConfigError, "truncated"),
        ("{}", ConfigError, "needs"),
        ('{"needs": 5}', ConfigError, r"\$\.needs"),
        ('{"needs": "x", "patiense": 2}', ConfigError, "no 'patiense'"),
        (FragileConfig(missing), HandlerFailed, "missing is not there"),
    ):
        with pytest.raises(error, match=words) as raised:
            await bus.spawn("fragile", config, name="f", process=process)
        if "patiense" in words:
            assert raised.value.hint == "did you mean 'patience'?"
    with pytest.raises(UnknownKind, match="fragil") as raised:
        await bus.spawn("fragil", process=process)
    assert "fragile" in raised.value.hint
    assert await bus.actors("f") == []
    (main,) = await bus.actors("node.main")
    assert main.restarts == 0
    (tmp_path / "missing").touch()
    await bus.spawn("fragile", FragileConfig(missing), name="f", process=process)
    with pytest.raises(NameTaken):
        await bus.spawn("counter", name="f")


# The blocking twin


def test_the_blocking_client_makes_the_same_calls(board: Board) -> None:
    with callboard.connect_sync(name="notebook") as bus, callboard.connect_sync() as other:
        counter = bus.spawn("counter", name="c", process=True)
        assert counter.ask(Add(3), timeout=20) == Count(3)
        counter.tell(Note(2))
        assert counter.ask(Report()).count == 2
        pieces = counter.stream(Follow(3))
        assert [type(piece) for piece in pieces] == [Piece] * 3
        assert pieces.result == Count(3)
        with bus.listen("topic.>", News) as messages, bus.tap("c") as seen:
            other.publish("topic.news", News("it works"))
            assert next(messages) == ("topic.news", News("it works"))
            other.actor("c").ask(Add(1))
            assert next(seen)[0] == "tap.c"
            assert (messages.dropped, seen.dropped) == (0, 0)
        bus.host(Counter, name="mine")
        assert other.actor("mine").ask(Add(2)) == Count(2)
        assert {info.address for info in other.actors()} >= {"c", "mine", "node.notebook"}
        assert {node.node for node in bus.nodes()} >= {"main", "c", "notebook"}
        other.stop("mine")
        bus.stop("c")
        with pytest.raises(NoSuchActor):
            counter.ask(Add(1))


def test_without_a_daemon_the_blocking_client_raises_the_same() -> None:
    with pytest.raises(NotReachable), callboard.connect_sync():
        pass


def test_leaving_a_blocking_stream_early_cancels_its_handler(board: Board) -> None:
    with callboard.connect_sync() as bus:
        wide = bus.spawn("wide", name="wide")
        for begun in wide.stream(Hold("")):
            assert begun.number == 1
            break
        assert wide.ask(Open(0), timeout=20) == Done(0)
        with wide.stream(Hold("")) as stream:
            next(iter(stream))
        assert wide.ask(Open(0), timeout=20) == Done(0)
        bus.stop("wide")


INTERRUPTED = """
import callboard
from antics import Open
with callboard.connect_sync() as bus:
    print("connected", flush=True)
    bus.actor("wide").ask(Open(99), timeout=60)
"""


def test_ctrl_c_ends_a_blocking_call_and_cancels_its_handler(board: Board) -> None:
    with callboard.connect_sync() as bus:
        bus.spawn("wide", name="wide")
        with bus.tap("wide") as seen:
            script = subprocess.Popen(
                [sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            next(seen)
        script.send_signal(signal.SIGINT)
        out, err = script.communicate(timeout=20)
        assert out == "connected\n"
        assert err.rstrip().endswith("KeyboardInterrupt")
        assert "never retrieved" not in err
        (wide,) = bus.actors("wide")
        assert wide.mailbox == 0
        bus.stop("wide")
