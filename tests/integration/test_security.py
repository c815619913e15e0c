"""Who gets in, who does not, who is put out, and what is written down of it: through a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from board import Board

from callboard.actors.bench.counter import Counter
from callboard.runtime.client import Client, connect
from callboard.runtime.credentials import create_account, creds_text, mint_user, new_user_key, sign_user
from callboard.runtime.errors import (
    ConfigError,
    CredentialsExpired,
    CredentialsRefused,
    CredentialsRevoked,
    Forbidden,
    NotReachable,
    TokenUsed,
)
from callboard.runtime.files import write_private
from callboard.runtime.identity import read_creds
from callboard.runtime.joining import pack_token, redeem
from callboard.runtime.placement import Process
from callboard.runtime.roles import JOIN, ROLES, process_role
from callboard.runtime.server_config import listen_of
from callboard.runtime.settings import ServerSettings
from callboard.runtime.tls import Tls
from callboard.schemas.bench import Add

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    board = Board.at(tmp_path_factory.mktemp("security"))
    board.up()
    board.run("spawn", "counter", "--name", "c")
    yield board
    board.close()


def made(board: Board, *arguments: str) -> Any:
    done = board.run("creds", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def as_user(board: Board, creds: Path | str) -> AbstractAsyncContextManager[Client]:
    return connect(board.info().url, str(creds))


def listed(board: Board, name: str) -> dict[str, Any]:
    return [line for line in made(board, "list") if line["name"] == name][-1]


def account_seed(board: Board) -> str:
    return Path(board.info().account).read_text().strip()


def text_of(file: str) -> str:
    return Path(file).read_text()


async def joined(board: Board, name: str) -> Path:
    token = made(board, "token")["token"]
    file = board.paths.state.parent / f"{name}.creds"
    write_private(file, await redeem(board.info().url, token, name))
    return file


async def test_a_client_asks_actors_and_is_forbidden_the_rest_at_once(board: Board) -> None:
    creds = made(board, "new", "asker")["creds"]
    async with as_user(board, creds) as bus:
        await bus.actor("c").ask(Add(1), timeout=20)
        with anyio.fail_after(15):
            with pytest.raises(Forbidden, match="role client"):
                await bus.spawn("counter", name="mine")
            with pytest.raises(Forbidden, match="role client"):
                await bus.stop("c")
            with pytest.raises(Forbidden, match="role client"):
                await bus.host(Counter, name="engine")
            for pattern in ("actor.>", "inbox.>", "tap.>"):
                with pytest.raises(Forbidden, match="role client"):
                    async with bus.listen(pattern):
                        pass


async def test_an_observer_sees_and_says_nothing(board: Board) -> None:
    creds = made(board, "new", "watcher", "--role", "observer")["creds"]
    async with as_user(board, creds) as bus, connect(state_dir=str(board.paths.state)) as other:
        async with bus.tap("c") as seen:
            await other.actor("c").ask(Add(1), timeout=20)
            subject, _ = await anext(seen)
            assert subject == "tap.c"
        with pytest.raises(Forbidden, match="role observer"):
            await bus.actor("c").ask(Add(1), timeout=5)


async def test_a_tool_answers_for_its_own_name_and_asks_nobody(board: Board) -> None:
    creds = made(board, "new", "hammer", "--role", "tool")["creds"]
    async with connect(board.info().url, creds, name="hammer") as tool:
        await tool.host(Counter, name="hammer")
        async with connect(state_dir=str(board.paths.state)) as other:
            assert (await other.actor("hammer").ask(Add(3), timeout=20)).value == 3
        with pytest.raises(Forbidden, match="role tool"):
            await tool.actor("c").ask(Add(1), timeout=5)
        with pytest.raises(Forbidden):
            await tool.host(Counter, name="engine")


async def test_a_tool_asks_the_actors_that_it_was_given_and_no_other(board: Board, tmp_path: Path) -> None:
    role = process_role("tool", ("c",))
    file = tmp_path / "drill.creds"
    write_private(file, mint_user(account_seed(board), "drill", "drill", role))
    assert read_creds(file).may_ask == {"c"}
    async with connect(board.info().url, str(file), name="drill") as tool:
        before = (await tool.actor("c").ask(Add(0), timeout=20)).value
        assert (await tool.actor("c").ask(Add(1), timeout=20)).value == before + 1
        for other in ("c.below", "tools", "node.main"):
            with pytest.raises(Forbidden):
                await tool.actor(other).ask(Add(1), timeout=5)
    for nobody in ("node", "node.main", "engine.>", "*"):
        with pytest.raises(ConfigError):
            process_role("tool", (nobody,))


async def test_a_joined_node_gives_its_tools_whom_they_may_ask(board: Board) -> None:
    file = await joined(board, "bench")
    async with connect(board.info().url, str(file), name="bench") as bus:
        for asks in (("c",), ()):
            ref = await bus.node.spawn("counter", name="plane", where=Process(role="tool", asks=asks))
            assert (await ref.ask(Add(2), timeout=20)).value == 2
            (own,) = file.parent.glob("bench-processes/*/plane.creds")
            assert read_creds(own).may_ask == frozenset(asks)
            await bus.node.stop("plane")


async def test_a_tool_process_answers_and_holds_no_key_of_the_account(board: Board) -> None:
    async with connect(state_dir=str(board.paths.state)) as bus:
        ref = await bus.node.spawn("counter", name="saw", where=Process(role="tool"))
        assert (await ref.ask(Add(2), timeout=20)).value == 2
        assert read_creds(board.paths.state / "creds" / "saw.creds").role == "tool"


async def test_a_token_lets_one_machine_join_once(board: Board) -> None:
    token = made(board, "token")["token"]
    url = board.info().url
    creds = await redeem(url, token, "remote")
    file = board.paths.state.parent / "remote.creds"
    write_private(file, creds)
    with pytest.raises(TokenUsed, match="remote"):
        await redeem(url, token, "another")
    with pytest.raises(TokenUsed):
        await redeem(url, token, "remote")  # another key, so another machine
    with pytest.raises(ConfigError, match="joined already"):
        await redeem(url, made(board, "token")["token"], "remote")
    with pytest.raises(ConfigError, match="main"):
        await redeem(url, made(board, "token")["token"], "main")
    async with connect(url, str(file), name="remote") as bus:
        assert "main" in {node.node for node in await bus.nodes()}
        await bus.host(Counter, name="far")
        async with connect(state_dir=str(board.paths.state)) as other:
            assert (await other.actor("far").ask(Add(4), timeout=20)).value == 4


async def test_a_joined_node_gets_users_for_its_processes_and_they_go_with_it(board: Board) -> None:
    file = await joined(board, "crew")
    assert "account" not in file.read_text()
    async with connect(board.info().url, str(file), name="crew") as bus:
        ref = await bus.node.spawn("counter", name="hand", where=Process())
        assert (await ref.ask(Add(5), timeout=20)).value == 5
    (own,) = file.parent.glob("crew-processes/*/hand.creds")
    assert read_creds(own).inbox == "node:crew:hand"
    assert oct(own.stat().st_mode & 0o777) == "0o600"
    revoked = made(board, "revoke", "crew")["revoked"]
    assert sorted(revoked) == ["crew", "crew:hand"]
    with pytest.raises(CredentialsRefused):
        async with as_user(board, own):
            pass


async def test_a_user_of_one_token_cannot_ask_in_the_name_of_another(board: Board) -> None:
    file = await joined(board, "honest")
    async with connect(board.info().url, str(file), name="honest") as bus:
        links = bus.node.require_links()
        with pytest.raises(Forbidden):
            await links.publisher.exchange("mint.node:remote", b"", 5)
        with pytest.raises(Forbidden):
            await links.publisher.exchange("join.token-00000000", b"", 5)
        for subject in ("mint.*", "join.*"):
            with pytest.raises(Forbidden):
                async with bus.listen(subject):
                    pass


async def test_a_token_that_was_used_stays_so_over_a_restart_of_the_daemon(tmp_path: Path) -> None:
    board = Board.at(tmp_path)
    try:
        board.up()
        token, user = made(board, "token")["token"], made(board, "new", "gone")["creds"]
        copy = tmp_path / "copy.creds"
        write_private(copy, text_of(user))
        await redeem(board.info().url, token, "one")
        assert board.run("creds", "revoke", "gone").returncode == 0
        board.run("down")
        board.up()
        with pytest.raises(TokenUsed):
            await redeem(board.info().url, token, "two")
        with pytest.raises(CredentialsRefused):
            async with as_user(board, copy):
                pass
        assert listed(board, "gone")["state"] == "revoked"
    finally:
        board.close()


async def test_an_expired_token_says_so(board: Board) -> None:
    seed, key = new_user_key()
    signed = sign_user(account_seed(board), "t", "t", key, JOIN, inbox="join:t", expires=time.time() - 1)
    with pytest.raises(CredentialsExpired, match="expired"):
        await redeem(board.info().url, pack_token(creds_text(signed, seed)), "late")


async def test_a_revoked_token_and_a_strangers_are_refused(board: Board, tmp_path: Path) -> None:
    token = made(board, "token")
    made(board, "revoke", token["name"])
    with pytest.raises(CredentialsRefused):
        await redeem(board.info().url, token["token"], "late")
    foreign = mint_user(create_account(tmp_path / "foreign.seed"), "t", "t", JOIN, inbox="join:t")
    with pytest.raises(CredentialsRefused):
        await redeem(board.info().url, pack_token(foreign), "late")
    with pytest.raises(ConfigError, match="no whole join token"):
        await redeem(board.info().url, token["token"][:-40], "late")


async def test_expired_credentials_end_a_connection_with_an_error_that_says_so(board: Board, tmp_path: Path) -> None:
    file = tmp_path / "short.creds"
    text = mint_user(
        account_seed(board), "short", "short", ROLES["client"], inbox="client:short", expires=time.time() + 2
    )
    write_private(file, text)
    async with as_user(board, file) as bus:
        await bus.actor("c").ask(Add(1), timeout=20)
        async with bus.listen("topic.>") as messages:
            with anyio.fail_after(10), pytest.raises(CredentialsExpired, match="expired"):
                await anext(messages)
    with pytest.raises(CredentialsExpired, match="expired"):
        async with as_user(board, file):
            pass


async def test_a_revoked_user_is_put_out_at_once_and_told(board: Board) -> None:
    creds = made(board, "new", "leaver")["creds"]
    async with as_user(board, creds) as bus, bus.listen("topic.>") as messages:
        done = await anyio.to_thread.run_sync(board.run, "creds", "revoke", "leaver")
        assert done.returncode == 0, done.stderr
        with anyio.fail_after(15), pytest.raises(CredentialsRevoked, match="revoked"):
            await anext(messages)
        with pytest.raises(CredentialsRevoked):
            await bus.actor("c").ask(Add(1), timeout=5)
    assert not listed(board, "leaver")["file"]
    assert board.run("creds", "revoke", "leaver").returncode == 2


async def test_a_new_user_of_an_old_name_puts_the_old_one_out(board: Board) -> None:
    old = text_of(made(board, "new", "rotated")["creds"])
    copy = board.paths.state.parent / "old.creds"
    write_private(copy, old)
    async with as_user(board, made(board, "new", "rotated")["creds"]) as bus:
        await bus.actor("c").ask(Add(1), timeout=20)
    with pytest.raises(CredentialsRefused):
        async with as_user(board, copy):
            pass


async def test_a_user_that_is_revoked_while_away_is_told_when_it_returns(tmp_path: Path) -> None:
    board = Board.at(tmp_path)
    try:
        board.up()
        creds = made(board, "new", "away")["creds"]
        async with as_user(board, creds) as bus, bus.listen("topic.>") as messages:
            server = board.server()
            server.suspend()
            ledger = board.paths.state / "creds.json"
            grants = json.loads(ledger.read_text())
            ledger.write_text(json.dumps([{**grant, "revoked": time.time()} for grant in grants]))
            server.kill()
            with anyio.fail_after(20), pytest.raises(CredentialsRefused, match="refuses"):
                await anext(messages)
    finally:
        board.close()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.chmod(0o644), "others on this machine may read it"),
        (lambda file: file.write_text(""), "not a whole NATS creds file"),
        (lambda file: file.write_text(file.read_text()[:200]), "not a whole NATS creds file"),
        (lambda file: file.write_text(file.read_text().replace("SUA", "SUB")[:-90]), "not a whole NATS creds file"),
        (lambda file: file.unlink(), "there is no creds file"),
        (lambda file: file.write_bytes(os.urandom(500)), "creds file"),
    ],
    ids=["open", "empty", "cut short", "changed", "gone", "noise"],
)
async def test_a_creds_file_that_is_open_or_damaged_is_not_used(
    board: Board, tmp_path: Path, spoil: Any, words: str
) -> None:
    file = tmp_path / "x.creds"
    write_private(file, mint_user(account_seed(board), "x", "x"))
    spoil(file)
    with pytest.raises(ConfigError, match=words):
        async with as_user(board, file):
            pass


async def test_the_key_of_another_user_does_not_fit_a_token(board: Board, tmp_path: Path) -> None:
    one, two = (mint_user(account_seed(board), "x", "x") for _ in range(2))
    file = tmp_path / "mixed.creds"
    write_private(file, one.partition("-----BEGIN USER")[0] + "-----BEGIN USER" + two.partition("-----BEGIN USER")[2])
    with pytest.raises(ConfigError, match="not the one that its token"):
        read_creds(file)


def test_a_damaged_ledger_is_no_leave_to_come_back(tmp_path: Path) -> None:
    board = Board.at(tmp_path)
    (board.paths.state / "creds.json").write_text("[{")
    done = board.run("up", "--detach")
    assert done.returncode == 2
    assert "creds.json is damaged" in done.stderr


def test_spawns_stops_and_credentials_are_written_down(board: Board) -> None:
    board.run("spawn", "counter", "--name", "noted")
    board.run("stop", "noted")
    board.run("spawn", "no-such-kind", "--name", "never")
    made(board, "new", "noted-user", "--role", "tool")
    made(board, "revoke", "noted-user")
    shown = board.run("logs", "audit", "-n", "1000").stdout.splitlines()
    lines = [json.loads(line) for line in shown]
    done = {(line["action"], line["what"]): line for line in lines}
    assert done["spawn", "noted"]["detail"] == "kind counter"
    assert not done["spawn", "noted"]["proven"]
    assert "pid" in done["stop", "noted"]["by"]
    assert done["spawn", "never"]["outcome"] == "actor.unknown_kind"
    assert done["creds.new", "noted-user"]["proven"]
    assert done["creds.revoke", "noted-user"]["by"].startswith("user:")
    assert oct((board.paths.logs / "audit.log").stat().st_mode & 0o777) == "0o600"


# TLS


def certificates(folder: Path) -> Path:
    """An authority, a certificate for `localhost`, one for another host, and one for a client."""
    config = folder / "ext.cnf"
    config.write_text(
        "[server]\nsubjectAltName=DNS:localhost,IP:127.0.0.1\n[other]\nsubjectAltName=DNS:elsewhere.example\n"
        "[client]\nextendedKeyUsage=clientAuth\n"
    )

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca", "-days", "2")
    for name in ("server", "other", "client"):
        openssl("req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-out", f"{name}.pem", "-days", "2", "-extfile", "ext.cnf", "-extensions", name),
        )
    for key in folder.glob("*.key"):
        key.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates(tmp_path_factory.mktemp("certs"))


async def test_an_open_server_speaks_tls_to_all(certs: Path, tmp_path: Path) -> None:
    board = Board.at(tmp_path)
    port = 14_000 + os.getpid() % 9_000
    try:
        tls = ("--tls-cert", str(certs / "server.pem"), "--tls-key", str(certs / "server.key"))
        done = board.run("up", "--detach", "--listen", f"0.0.0.0:{port}", *tls)
        assert done.returncode == 0, done.stderr
        assert board.info().url == f"tls://127.0.0.1:{port}"
        assert board.run("spawn", "counter", "--name", "c", "--process").returncode == 0
        url, token = f"tls://localhost:{port}", made(board, "token")["token"]
        ca = Tls(ca=str(certs / "ca.pem"))
        file = tmp_path / "far.creds"
        write_private(file, await redeem(url, token, "far", ca))
        async with connect(url, str(file), tls=ca) as bus:
            assert (await bus.actor("c").ask(Add(1), timeout=20)).value == 1
        with pytest.raises(NotReachable, match=r"(?i)certificate"):
            async with connect(url, str(file)):  # the system's authorities do not know ours
                pass
        assert board.run("creds", "revoke", "far").returncode == 0
    finally:
        board.close()


def serve(folder: Path, certs: Path, name: str) -> tuple[subprocess.Popen[bytes], int]:
    """A server of somebody's own, which wants certificates of its clients too."""
    from own_server import OwnServer

    server = OwnServer(folder)
    (folder / "own.conf").write_text(
        f"listen: 127.0.0.1:{server.port}\n"
        + (
            f'tls {{ cert_file: "{certs}/{name}.pem", key_file: "{certs}/{name}.key", '
            f'ca_file: "{certs}/ca.pem", verify: true }}\n'
            if name
            else ""
        )
    )
    binary = Path(sys.executable).with_name("nats-server")
    process = subprocess.Popen([binary, "-c", folder / "own.conf"], stderr=subprocess.PIPE)
    assert process.stderr is not None
    while b"Server is ready" not in process.stderr.readline():
        assert process.poll() is None
    return process, server.port


@pytest.mark.parametrize(
    ("name", "client", "words"),
    [
        ("server", True, ""),
        ("server", False, "."),
        ("other", True, r"(?i)hostname mismatch|not valid for"),
        ("", True, "offers no TLS"),
    ],
)
async def test_a_server_of_ones_own_is_held_to_its_certificate(
    certs: Path, tmp_path: Path, name: str, client: bool, words: str
) -> None:
    process, port = serve(tmp_path, certs, name)
    shown = {"cert": str(certs / "client.pem"), "key": str(certs / "client.key")} if client else {}
    try:
        if not words:
            async with connect(f"tls://localhost:{port}", tls=Tls(ca=str(certs / "ca.pem"), **shown)) as bus:
                await bus.host(Counter, name="c")
            return
        with pytest.raises(NotReachable, match=words):
            async with connect(f"tls://localhost:{port}", tls=Tls(ca=str(certs / "ca.pem"), **shown)):
                pass
    finally:
        process.kill()
        process.communicate()


def test_beyond_this_machine_only_with_tls(certs: Path, tmp_path: Path) -> None:
    cert, key = str(certs / "server.pem"), str(certs / "server.key")
    assert listen_of(ServerSettings(listen="0.0.0.0:4222", tls_cert=cert, tls_key=key)).tls
    assert not listen_of(ServerSettings(listen="127.0.0.1:4222")).tls
    assert listen_of(ServerSettings(listen="0.0.0.0:4222", plain=True)).local == "127.0.0.1"
    open_key = tmp_path / "open.key"
    open_key.write_text((certs / "server.key").read_text())
    open_key.chmod(0o644)
    for settings, words in (
        (ServerSettings(listen="0.0.0.0:4222"), "without TLS"),
        (ServerSettings(listen="[::]:4222"), "without TLS"),
        (ServerSettings(listen="4222"), "no address"),
        (ServerSettings(listen="0.0.0.0:4222", tls_cert=cert), "both a certificate and its key"),
        (ServerSettings(listen="0.0.0.0:4222", tls_cert=cert, tls_key=str(open_key)), "everybody may read"),
        (ServerSettings(listen="0.0.0.0:4222", tls_cert=cert, tls_key=str(certs / "other.key")), "cannot be used"),
    ):
        with pytest.raises(ConfigError, match=words):
            listen_of(settings)
    done = Board.at(tmp_path / "b").run("up", "--detach", "--listen", "0.0.0.0:4222")
    assert done.returncode == 2
    assert "without TLS" in done.stderr
