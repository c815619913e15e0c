"""`callboard actors`, `spawn`, `stop`, `publish`, `listen` and `creds` against a daemon that runs as users run it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import nats
import nats.errors
import pytest
from board import Board, install_antics, running
from nats.aio.client import Client as Nats
from nats.aio.msg import Msg

import callboard
from callboard.runtime.cli import main

ADD = '{"type": "bench.add", "amount": 3}'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    base = tmp_path_factory.mktemp("commands")
    with running(base, PYTHONPATH=str(install_antics(base / "site"))) as board:
        yield board


@pytest.fixture
def board(daemon: Board, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """The daemon, with a counter `c`. What a test spawned is stopped after it."""
    for name, value in daemon.environment.items():
        monkeypatch.setenv(name, value)
    with callboard.connect_sync() as bus:
        bus.spawn("counter", name="c")
        yield daemon
        for info in bus.actors():
            if "." not in info.address:
                bus.stop(info.address, timeout=0.1)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """One command line in this process, which saves the time that a process takes to start."""

    def run(*arguments: str) -> Outcome:
        try:
            code = main(arguments)
        except SystemExit as exit:  # argparse
            code = int(exit.code or 0)
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


# Listing


@pytest.mark.usefixtures("board")
def test_actors_lists_who_is_there_as_a_table_and_as_json(cli: Cli) -> None:
    heading, *rows = cli("actors").out.splitlines()
    assert heading.split()[:5] == ["ADDRESS", "KIND", "STATE", "NODE", "PID"]
    assert [row.split()[:4] for row in rows if row[0] == "c"] == [["c", "counter", "running", "main"]]
    listed = {actor["address"]: actor for actor in cli("actors", "--json").json}
    assert listed.keys() >= {"c", "node.main"}
    assert listed["c"]["kind"] == "counter"
    assert [actor["address"] for actor in cli("actors", "c", "--json").json] == ["c"]
    assert cli("actors", "nobody", "--json").json == []
    only_heading = cli("actors", "nobody")
    assert (only_heading.code, len(only_heading.out.splitlines())) == (0, 1)


@pytest.mark.usefixtures("board")
def test_columns_stay_in_line_with_many_actors(cli: Cli) -> None:
    with callboard.connect_sync() as bus:
        for number in range(200):
            bus.spawn("counter", name=f"a-rather-long-name-{number}", restart=callboard.Restart.TEMPORARY)
        table = cli("actors", "--json").json
        heading, *rows = cli("actors").out.splitlines()
        column = heading.index("KIND")
        assert len(rows) == len(table) >= 200
        assert {row[column - 2 : column] for row in rows} == {"  "}
        assert [row.split()[0] for row in rows] == sorted(row.split()[0] for row in rows)
        for number in range(200):
            bus.stop(f"a-rather-long-name-{number}")


def test_a_reader_of_the_table_may_leave_early(board: Board) -> None:
    actors = board.start("actors")
    assert actors.stdout is not None
    assert actors.stderr is not None
    actors.stdout.close()
    assert actors.stderr.read() == ""
    assert actors.wait(20) == 0


# Spawning and stopping


@pytest.mark.usefixtures("board")
def test_spawn_prints_the_address_and_stop_ends_it(cli: Cli) -> None:
    assert cli("spawn", "counter", "--name", "d") == Outcome(0, "d\n", "")
    address = cli("spawn", "counter", "--process", "--json").json["address"]
    assert {"d", address} <= {actor["address"] for actor in cli("actors", "--json").json}
    assert cli("stop", "d") == cli("stop", address) == Outcome(0, "", "")
    assert cli("actors", "d", "--json").json == cli("actors", address, "--json").json == []


@pytest.mark.usefixtures("board")
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("spawn", "couter"), 1, "no actor kind named 'couter'\n  did you mean 'counter'?"),
        (("spawn", "os:system"), 1, "may not load the module 'os'"),
        (("spawn", "counter", "--name", "c"), 1, "there is an actor c already"),
        (("spawn", "counter", "--name", "a.b"), 2, "'a.b' is no name for an actor"),
        (("spawn", "counter", "--config", "{x"), 2, "the configuration of Counter does not fit"),
        (("spawn", "counter", "--config", '{"x": 1}'), 2, "no 'x'"),
        (("spawn", "fragile", "--config", '{"needs": "/nowhere"}'), 1, "/nowhere is not there"),
        (("spawn", "counter", "--restart", "sometimes"), 2, "invalid choice"),
        (("stop", "nobody"), 1, "there is no actor nobody"),
        (("stop", "node.main"), 2, "`callboard down` stops"),
        (("stop", "c", "--timeout", "-1"), 2, "must be more than 0"),
        (("publish", "topic.a", "not json"), 2, "this is no JSON"),
        (("publish", "topic.a", "[1]"), 2, "has no type"),
        (("publish", "topic.a", '{"amount": 3}'), 2, "has no type"),
        (("publish", "two words", ADD), 2, "is no subject"),
        (("publish", "topic.*", ADD), 2, "is no subject"),
        (("publish", "actor.nobody", ADD), 1, "there is no actor nobody"),
        (("publish", "foo.bar", ADD), 1, "may not publish to foo.bar\n  free subjects begin with `topic.`"),
        (("publish", "--answer", "topic.a", ADD), 2, "only an actor answers"),
        (("publish", "--answer", "actor.nobody", ADD), 1, "there is no actor nobody"),
        (("publish", "--answer", "actor.c.child", ADD), 1, "there is no actor c.child"),
        (("publish", "--answer", "actor.c", '{"type": "bench.ad"}'), 1, "takes no bench.ad\n  it takes bench.add,"),
        (("publish", "--answer", "actor.c", '{"type": "bench.add", "amount": "x"}'), 1, "`$.amount`"),
        (("publish", "--answer", "actor.c", ADD, "--timeout", "0"), 2, "must be more than 0"),
        (("listen", "foo.bar"), 1, "may not listen to foo.bar\n  free subjects begin with `topic.`"),
        (("listen", "actor.>"), 2, "`callboard listen 'tap.>'` shows"),
        (("listen", ">"), 2, "`callboard listen 'tap.>'` shows"),
        (("listen", "topic..a"), 2, "is no pattern"),
        (("listen", "topic.a", "-n", "0"), 2, "must be 1 or more"),
        (("creds", "new", "two words"), 2, "letters, digits"),
        (("actors", "--nats", "nats://127.0.0.1:1"), 3, "does not answer: Connection refused"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_a_hint(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, words: str
) -> None:
    monkeypatch.setattr("callboard.runtime.bus.CONNECT_TIMEOUT_S", 0.2)
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert outcome.err.startswith(("callboard: ", "usage: "))
    if outcome.err.startswith("callboard: "):
        assert len(outcome.err.splitlines()) <= 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("actors",),
        ("spawn", "counter"),
        ("stop", "c"),
        ("publish", "topic.a", ADD),
        ("listen", "topic.>"),
        ("creds", "new", "me"),
    ],
)
def test_without_a_daemon_each_command_ends_with_3(cli: Cli, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith(f"callboard: no daemon is running on {tmp_path}")


# Publishing


@pytest.mark.usefixtures("board")
def test_publish_prints_the_answer_and_a_stream_as_it_comes(cli: Cli) -> None:
    assert cli("publish", "--answer", "actor.c", ADD) == Outcome(0, '{"type":"bench.count","value":3}\n', "")
    followed = cli("publish", "--answer", "actor.c", '{"type": "bench.follow", "count": 3}')
    types = [json.loads(line)["type"] for line in followed.out.splitlines()]
    assert types == ["bench.piece"] * 3 + ["bench.count"]
    assert cli("publish", "actor.c", ADD) == Outcome(0, "", "")


def test_publish_takes_a_message_from_each_line_of_stdin(board: Board) -> None:
    done = board.run("publish", "--answer", "actor.c", "-", stdin=f"{ADD}\n\n{ADD}")
    assert [json.loads(line)["value"] for line in done.stdout.splitlines()] == [3, 6]
    assert done.returncode == 0
    broken = board.run("publish", "--answer", "actor.c", "-", stdin=f"{ADD}\n" + '{"type": \n' + ADD)
    assert [json.loads(line)["value"] for line in broken.stdout.splitlines()] == [9]
    assert "line 2 is no JSON" in broken.stderr
    assert broken.returncode == 2


def test_publish_sends_each_line_of_stdin_when_it_comes(board: Board) -> None:
    publish = board.start("publish", "--answer", "actor.c", "-", stdin=subprocess.PIPE)
    assert publish.stdin is not None
    assert publish.stdout is not None
    for total in (3, 6):
        publish.stdin.write(ADD + "\n")
        publish.stdin.flush()
        assert json.loads(publish.stdout.readline())["value"] == total
    publish.send_signal(signal.SIGINT)  # while it waits for more
    assert publish.wait(20) == 130
    assert publish.stderr is not None
    assert publish.stderr.read() == ""


# Listening


def listen(board: Board, *arguments: str) -> subprocess.Popen[str]:
    """Returns when it listens."""
    process = board.start("listen", *arguments)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("listening to")
    return process


def test_listen_prints_so_many_messages_and_ends(board: Board, cli: Cli) -> None:
    process = listen(board, "topic.>", "-n", "2", "--json")
    plain = listen(board, "topic.news", "-n", "1")
    cli("publish", "topic.news", '{"type": "news", "text": "hello"}')
    cli("publish", "topic.other", '{"type": "other"}')
    out, err = process.communicate(timeout=20)
    assert [json.loads(line) for line in out.splitlines()] == [
        {"subject": "topic.news", "message": {"type": "news", "text": "hello"}},
        {"subject": "topic.other", "message": {"type": "other"}},
    ]
    assert (process.returncode, err) == (0, "")
    assert plain.communicate(timeout=20)[0] == 'topic.news {"type":"news","text":"hello"}\n'


def test_listen_to_a_tap_shows_what_an_actor_gets(board: Board, cli: Cli) -> None:
    process = listen(board, "tap.c", "-n", "1", "--json")
    plain = listen(board, "tap.>")
    cli("publish", "--answer", "actor.c", ADD)
    shown = json.loads(process.communicate(timeout=20)[0])
    assert shown["subject"] == "tap.c"
    assert shown["message"]["message"] == {"type": "bench.add", "amount": 3, "padding": ""}
    assert plain.stdout is not None
    # Between them may be what the actors of the nodes get.
    line = next(line for line in plain.stdout if not line.startswith("tap.node."))
    assert line.startswith('tap.c from json {"type":"bench.add"')
    plain.send_signal(signal.SIGINT)
    assert plain.wait(timeout=20) == 130


@pytest.mark.parametrize("pattern", ["topic.>", "tap.>"])
def test_ctrl_c_ends_listening_without_a_word(board: Board, pattern: str) -> None:
    process = listen(board, pattern)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, "", "")


# Programs of other people


@dataclass(frozen=True)
class Program:
    """What a program with nothing but a NATS client has."""

    client: Nats
    refused: list[str]

    async def ask(self, subject: str, message: str) -> Any:
        return json.loads((await self.client.request(subject, message.encode(), timeout=20)).data)


@pytest.fixture
async def outsider(board: Board, cli: Cli) -> AsyncIterator[Program]:
    made = (await anyio.to_thread.run_sync(cli, "creds", "new", "my-program", "--json")).json
    refused: list[str] = []

    async def on_error(error: Exception) -> None:
        refused.append(str(error).lower())

    client = await nats.connect(
        made["url"], user_credentials=made["creds"], inbox_prefix=made["inbox_prefix"].encode(), error_cb=on_error
    )
    yield Program(client, refused)
    await client.close()


@pytest.mark.usefixtures("board")
def test_credentials_are_for_one_person_and_say_where_to_go(cli: Cli, board: Board) -> None:
    made = cli("creds", "new", "my-program", "--json").json
    assert stat.S_IMODE(os.stat(made["creds"]).st_mode) == 0o600
    assert made["url"] == board.info().url
    shown = cli("creds", "new", "my-program").out
    assert all(made[what] in shown for what in ("url", "creds", "inbox_prefix"))


@pytest.mark.anyio
async def test_a_plain_nats_client_asks_and_streams_in_json(outsider: Program) -> None:
    assert await outsider.ask("actor.c", ADD) == {"type": "bench.count", "value": 3}
    unknown = await outsider.ask("actor.c", '{"type": "bench.ad"}')
    assert (unknown["type"], unknown["code"]) == ("error", "message.not_understood")
    assert "bench.add" in unknown["hint"]
    missing = await outsider.ask("actor.c.child", ADD)
    assert (missing["type"], missing["code"]) == ("error", "actor.none")
    with pytest.raises(nats.errors.NoRespondersError):
        await outsider.ask("actor.nobody", ADD)

    inbox = outsider.client.new_inbox()
    answers = await outsider.client.subscribe(inbox)
    await outsider.client.publish("actor.c", b'{"type": "bench.follow", "count": 3}', inbox)
    got: list[Msg] = []
    while not got or got[-1].reply:  # all but the last name a reply subject
        got.append(await answers.next_msg(5))
    assert [json.loads(message.data)["type"] for message in got] == ["bench.piece"] * 3 + ["bench.count"]


@pytest.mark.anyio
async def test_what_finds_no_room_is_published_on_dead(outsider: Program, board: Board, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    hold = json.dumps({"type": "antics.hold", "gate": str(gate)})
    async with callboard.connect() as bus:
        await bus.spawn("narrow", name="narrow")
        dead = await outsider.client.subscribe("dead.>")
        inbox = outsider.client.new_inbox()
        answers = await outsider.client.subscribe(inbox)
        await outsider.client.publish("actor.narrow", hold.encode(), inbox)
        assert json.loads((await answers.next_msg(5)).data)["type"] == "antics.begun"
        for number in range(2):  # the first waits, and the second finds no room
            await outsider.client.publish("actor.narrow", f'{{"number": {number}, {hold[1:]}'.encode())
        message = await dead.next_msg(5)
        assert message.subject == "dead.narrow"
        assert json.loads(message.data)["number"] == 1
        assert (await outsider.ask("actor.narrow", hold))["code"] == "actor.mailbox_full"
        (narrow,) = await bus.actors("narrow")
        assert narrow.dropped == 1
        gate.touch()
        assert json.loads((await answers.next_msg(5)).data)["type"] == "antics.done"


@pytest.mark.anyio
@pytest.mark.parametrize("subject", ["inbox.>", "inbox.main.>", "inbox.program:other.>", "actor.>", "$JS.>", "node.>"])
async def test_a_programs_credentials_do_not_read_what_is_not_for_it(outsider: Program, subject: str) -> None:
    await outsider.client.subscribe(subject)
    await outsider.ask("actor.c", ADD)  # the rest goes on, and what was refused was so before
    assert any("permissions violation for subscription" in refusal for refusal in outsider.refused)


@pytest.mark.anyio
@pytest.mark.parametrize("subject", ["nodes.down", "$JS.API.STREAM.LIST", "foo.bar"])
async def test_a_programs_credentials_do_not_reach_the_works(outsider: Program, subject: str) -> None:
    await outsider.client.publish(subject, b"{}")
    await outsider.ask("actor.c", ADD)
    assert any("permissions violation for publish" in refusal for refusal in outsider.refused)


@pytest.mark.anyio
async def test_nats_own_tools_see_the_company(outsider: Program) -> None:
    inbox = outsider.client.new_inbox()
    answers = await outsider.client.subscribe(inbox)
    await outsider.client.publish("$SRV.PING", b"", inbox)
    names: set[str] = set()
    while names != {"counter", "node"}:
        names.add(json.loads((await answers.next_msg(5)).data)["name"])
    info = await outsider.ask("$SRV.INFO.counter", "")
    assert info["endpoints"][0]["subject"] == "actor.c"


def test_the_commands_need_no_terminal_and_no_home(board: Board, tmp_path: Path) -> None:
    """As a service runs them: an environment with next to nothing in it."""
    bare = {"PATH": os.environ["PATH"], **board.environment}
    done = subprocess.run(
        [sys.executable, "-m", "callboard.runtime.cli", "actors", "c", "--json"],
        env=bare,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [actor["address"] for actor in json.loads(done.stdout)] == ["c"]
