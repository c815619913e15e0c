"""The parts of the MCP client and server that need no server: configuration, names, media, forms of results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.tools.mcp.config import (
    SamplingPolicy,
    ServerConfig,
    Transport,
    read_server,
    read_servers,
    without_secrets,
    write_servers,
)
from callboard.actors.tools.mcp.errors import NoSuchServer
from callboard.actors.tools.mcp.foreign_tool import MAX_NAME, names_for
from callboard.actors.tools.mcp.offered import OutputForm, host_name
from callboard.actors.tools.mcp.offered_media import explained
from callboard.actors.tools.mcp.schema_stash import stash_output_schemas
from callboard.actors.tools.mcp.serving import token_in
from callboard.actors.tools.mcp.starting import asks_of
from callboard.runtime.errors import ConfigError


def written(path: Path, servers: Any) -> Path:
    path.write_text(json.dumps({"mcpServers": servers}))
    return path


def test_a_file_of_another_host_is_read_as_it_is(tmp_path: Path) -> None:
    path = written(
        tmp_path / "mcp.json",
        {
            "files": {"command": "npx", "args": ["-y", "server"], "env": {"A": "b"}, "autoApprove": ["read"]},
            "wiki": {"type": "streamable-http", "url": "https://example.com/mcp", "headers": {"X": "y"}},
            "old": {"type": "sse", "url": "https://example.com/sse", "disabled": True},
        },
    )
    servers = read_servers(path)
    assert [server.transport for server in servers.values()] == [Transport.STDIO, Transport.HTTP, Transport.SSE]
    assert servers["files"].args == ("-y", "server")
    assert servers["old"].disabled
    again = tmp_path / "again.json"
    write_servers(again, servers)
    assert again.stat().st_mode & 0o777 == 0o600
    assert read_servers(again) == servers


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"command": "a", "url": "https://b"}, "either a command or a url"),
        ({}, "either a command or a url"),
        ({"url": "ftp://b"}, "http"),
        ({"command": "a", "type": "http"}, "has a url"),
        ({"command": "a", "type": "carrier-pigeon"}, "no transport"),
        ({"command": "a", "timeout_s": -1}, "timeout_s"),
        ({"command": "a", "samplng": "ask"}, "unknown key samplng"),
        ({"command": "a", "sampling": "always"}, "sampling"),
        ([], "object"),
    ],
)
def test_what_is_wrong_names_file_and_server(tmp_path: Path, server: Any, words: str) -> None:
    path = written(tmp_path / "mcp.json", {"one": server})
    with pytest.raises(ConfigError, match=words) as raised:
        read_servers(path)
    assert "one" in str(raised.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"servers": 3}', '{"mcpServers": []}', "[" * 100_000])
def test_what_is_no_such_file_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mcp.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"mcp\.json"):
        read_servers(path)


def test_names_are_roots_of_addresses(tmp_path: Path) -> None:
    for name in ("a.b", "", "x" * 49, "a b"):
        with pytest.raises(ConfigError, match="no name"):
            read_servers(written(tmp_path / "mcp.json", {name: {"command": "a"}}))
    assert read_servers(tmp_path / "nothing.json") == {}
    with pytest.raises(NoSuchServer, match="'wki'") as raised:
        read_server(written(tmp_path / "mcp.json", {"wiki": {"command": "a"}}), "wki")
    assert raised.value.hint == "did you mean wiki?"


def test_variables_are_filled_in_and_one_that_is_not_set_is_named() -> None:
    server = ServerConfig(command="${BIN:-run}", args=("--key=${KEY}",), env={"A": "${KEY}"}, cwd="${HOME}/x")
    filled = server.expanded("one", {"KEY": "secret-1", "HOME": "/home/me"})
    assert (filled.command, filled.args, filled.env, filled.cwd) == (
        "run",
        ("--key=secret-1",),
        {"A": "secret-1"},
        "/home/me/x",
    )
    with pytest.raises(ConfigError, match="KEY is not set"):
        server.expanded("one", {"HOME": "/"})


def test_what_may_be_a_key_is_not_shown() -> None:
    server = ServerConfig(
        url="https://me:hush@example.com/mcp?key=hush-hush", headers={"Authorization": "Bearer abcdefgh"}
    )
    assert server.shown == without_secrets(server.url) == "https://example.com/mcp"
    assert {"abcdefgh", "Bearer abcdefgh", server.url} <= set(server.secrets())
    assert "hush" not in ServerConfig(command="run", args=("--key", "hush")).shown
    assert ServerConfig(command="x").sampling is SamplingPolicy.REFUSE


@given(st.lists(st.text(min_size=1, max_size=90), max_size=20))
def test_names_of_theirs_become_names_of_ours_each_its_own(theirs: list[str]) -> None:
    names = names_for(theirs, ("*",))
    assert set(names) == set(theirs)
    assert len(set(names.values())) == len(names)
    for name in names.values():
        assert 0 < len(name) <= MAX_NAME
        assert name.replace("_", "").replace("-", "").isalnum() or set(name) <= set("_-")
        assert name.isascii()


@given(st.lists(st.text(min_size=1, max_size=90), unique=True, max_size=20))
def test_hosts_get_names_that_they_take_each_its_own(ours: list[str]) -> None:
    found: dict[str, str] = {}
    for name in ours:
        found[host_name(name, found)] = name
    assert len(found) == len(ours)
    assert all(len(name) <= 64 and name.isascii() for name in found)


def test_results_that_are_no_objects_are_put_into_one() -> None:
    number = OutputForm.of('{"type": "integer"}')
    assert (number.schema or {})["properties"] == {"result": {"type": "integer"}}
    assert number.structured("3") == {"result": 3}
    plain = OutputForm.of('{"type": "object", "properties": {}}')
    assert plain.structured('{"a": 1}') == {"a": 1}
    named = OutputForm.of('{"type": "array", "items": {"$ref": "#/$defs/P"}, "$defs": {"P": {"type": "object"}}}')
    assert named.schema is not None
    assert named.schema["$defs"] == {"P": {"type": "object"}}
    assert OutputForm.of("{}").structured("3") is None
    itself = OutputForm.of('{"type": "array", "items": {"$ref": "#"}}')
    assert itself.schema is None


def test_schemas_of_media_say_how_they_are_sent_and_stay_as_they_were() -> None:
    schema = {
        "type": "object",
        "properties": {"image": {"type": "string", "format": "image", "description": "a photo"}},
    }
    before = msgspec.json.encode(schema)
    shown = explained(schema, files=True)["properties"]["image"]
    assert "format" not in shown
    assert shown["description"].startswith("a photo (image: a data: URI")
    assert "path" in shown["description"]
    assert msgspec.json.encode(schema) == before


def test_what_lists_no_tools_is_left_as_it_is() -> None:
    class Response:
        def __init__(self, result: Any) -> None:
            self.message = type("Message", (), {"result": result})()

    for result in (
        {"content": []},
        {"tools": "none"},
        {"tools": [{"name": "a", "inputSchema": {"type": "object"}}]},
        None,
    ):
        before = json.dumps(result)
        stash_output_schemas(Response(result))
        assert json.dumps(result) == before
    listed: dict[str, Any] = {"tools": [7, {"name": "a", "outputSchema": {"x": 1}}, {"nothing": 1}]}
    stash_output_schemas(Response(listed))
    (tool,) = listed["tools"]
    assert tool["inputSchema"] == {"type": "object"}
    assert "outputSchema" not in tool


def test_a_token_is_made_once_and_a_short_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mcp.token"
    made = token_in(path)
    assert len(made) >= 32
    assert token_in(path) == made
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_text("short\n")
    with pytest.raises(ConfigError, match="characters"):
        token_in(path)


@pytest.mark.parametrize(
    ("config", "asks"),
    [
        (ServerConfig(command="x"), ("tools", "questions")),
        (ServerConfig(command="x", elicitation=False), ("tools",)),
        (ServerConfig(command="x", elicitation=False, sampling=SamplingPolicy.ALLOW), ("tools", "engine.scheduler")),
        (
            ServerConfig(command="x", elicitation=False, sampling=SamplingPolicy.ASK),
            ("tools", "questions", "engine.scheduler"),
        ),
    ],
)
def test_a_servers_process_may_ask_whom_its_configuration_lets_it_turn_to(
    config: ServerConfig, asks: tuple[str, ...]
) -> None:
    assert asks_of(config) == asks
