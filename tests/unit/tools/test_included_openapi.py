"""APIs by their OpenAPI documents, over real sockets: worked examples, styles, keys, bodies, and hostile documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from web_server import WebServer, serving

from callboard.actors.tools.errors import ToolArguments, ToolDefinition, ToolError
from callboard.actors.tools.included.net.errors import FetchRefused
from callboard.actors.tools.included.openapi.document import parse_document
from callboard.actors.tools.included.openapi.operations import operations_of
from callboard.actors.tools.included.openapi.tools import ApiOptions, OpenApiOptions, tools
from callboard.actors.tools.outcome import Outcome
from callboard.actors.tools.values import File
from callboard.runtime.errors import ConfigError

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples" / "openapi"
LOCAL = ("127.0.0.0/8",)


@pytest.fixture
def site() -> Iterator[WebServer]:
    with serving() as server:
        yield server


def call(options: ApiOptions, name: str, media: dict[str, File] | None = None, /, **arguments: Any) -> Outcome:
    async def main() -> Outcome:
        offered = tools(OpenApiOptions({"api": options}))
        tool = next(tool for tool in offered if tool.info.name == f"api_{name}")
        try:
            return await tool.call(json.dumps(arguments), media)
        finally:
            await tool.close()  # pyright: ignore[reportGeneralTypeIssues]

    return anyio.run(main)


def local(site: WebServer, document: Path | str, **more: Any) -> ApiOptions:
    return ApiOptions(str(document), base_url=site.url, allow=LOCAL, **more)


def written(tmp_path: Path, paths: dict[str, Any], **more: Any) -> Path:
    document = {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": paths, **more}
    path = tmp_path / "api.json"
    path.write_text(json.dumps(document))
    return path


# The worked examples.


def test_weather(site: WebServer) -> None:
    answer = {"latitude": 52.5, "current_units": {"temperature_2m": "°C"}, "current": {"temperature_2m": 3.4}}
    site.page("/v1/forecast", json.dumps(answer), "application/json; charset=utf-8")
    outcome = call(
        local(site, EXAMPLES / "weather.yaml"),
        "forecast",
        latitude=52.5,
        longitude=13.4,
        current=["temperature_2m", "precipitation"],
    )
    assert outcome.data == answer
    assert site.seen[0].query == {
        "latitude": "52.5",
        "longitude": "13.4",
        "current": "temperature_2m,precipitation",
    }
    with pytest.raises(ToolArguments, match="latitude"):
        call(local(site, EXAMPLES / "weather.yaml"), "forecast", latitude=152, longitude=0)
    with pytest.raises(ToolArguments, match="current"):
        call(local(site, EXAMPLES / "weather.yaml"), "forecast", latitude=1, longitude=0, current=["warmth"])


def test_finance(site: WebServer) -> None:
    rates = {"amount": 1.0, "base": "USD", "date": "2026-01-02", "rates": {"CHF": 0.79, "EUR": 0.85}}
    site.page("/2026-01-02", json.dumps(rates), "application/json")
    site.page("/currencies", json.dumps({"EUR": "Euro"}), "application/json")
    api = local(site, EXAMPLES / "finance.yaml")
    assert call(api, "rates", date="2026-01-02", base="USD", symbols=["EUR", "CHF"]).data == rates
    assert site.seen[0].query == {"base": "USD", "symbols": "EUR,CHF"}
    assert call(api, "currencies").data == {"EUR": "Euro"}
    with pytest.raises(ToolArguments, match="date"):
        call(api, "rates", date="../admin")


def test_sports(site: WebServer) -> None:
    matches = [{"matchID": 1, "team1": {"teamName": "A"}, "team2": {"teamName": "B"}, "matchIsFinished": True}]
    site.page("/getmatchdata/bl1/2025/3", json.dumps(matches), "application/json")
    site.page("/getbltable/bl1/2025", json.dumps([{"teamName": "A", "points": 9}]), "application/json")
    api = local(site, EXAMPLES / "sports.yaml")
    assert call(api, "matches", league="bl1", season=2025, matchday=3).data == matches
    assert call(api, "table", league="bl1", season=2025).data[0]["points"] == 9


def test_travel(site: WebServer) -> None:
    found = {"connections": [{"from": {"departure": "2026-01-02T10:00:00+0100"}, "duration": "00d00:56:00"}]}
    site.page("/connections", json.dumps(found), "application/json")
    site.page("/locations", json.dumps({"stations": [{"name": "Zürich HB"}]}), "application/json")
    site.page("/stationboard", json.dumps({"stationboard": [{"to": "Bern"}]}), "application/json")
    api = local(site, EXAMPLES / "travel.yaml")
    assert call(api, "connections", **{"from": "Zürich", "to": "Bern", "via": ["Olten", "Aarau"]}).data == found
    assert site.seen[0].query["from"] == "Zürich"
    assert call(api, "locations", query="Zürich").data["stations"][0]["name"] == "Zürich HB"
    assert call(api, "departures", station="Zürich HB", limit=3).data["stationboard"][0]["to"] == "Bern"


@pytest.mark.parametrize("name", ["weather", "finance", "sports", "travel"])
def test_the_examples_name_their_public_servers(name: str) -> None:
    offered = tools(OpenApiOptions({name: ApiOptions(str(EXAMPLES / f"{name}.yaml"))}))
    assert offered
    assert all(tool.info.name.startswith(f"{name}_") and tool.info.annotations.read_only for tool in offered)


# Requests.

OBJECT = {"type": "object", "additionalProperties": True}


@pytest.mark.parametrize(
    ("parameter", "value", "asked"),
    [
        ({"name": "q", "in": "query", "schema": {"type": "string"}}, "a b&c=d", "?q=a+b%26c%3Dd"),
        ({"name": "q", "in": "query", "schema": {"type": "boolean"}}, True, "?q=true"),
        ({"name": "q", "in": "query", "schema": {"type": "array"}}, ["a", 1], "?q=a&q=1"),
        ({"name": "q", "in": "query", "explode": False, "schema": {"type": "array"}}, ["a", "b"], "?q=a%2Cb"),
        (
            {"name": "q", "in": "query", "style": "pipeDelimited", "explode": False, "schema": {"type": "array"}},
            ["a", "b"],
            "?q=a%7Cb",
        ),
        (
            {"name": "q", "in": "query", "style": "deepObject", "schema": OBJECT},
            {"a": 1, "b": "x"},
            "?q%5Ba%5D=1&q%5Bb%5D=x",
        ),
        ({"name": "q", "in": "query", "schema": OBJECT}, {"a": 1, "b": 2}, "?a=1&b=2"),
        ({"name": "q", "in": "query", "content": {"application/json": {"schema": OBJECT}}}, {"a": 1}, '?q=%7B"a"'),
    ],
)
def test_query_styles(site: WebServer, tmp_path: Path, parameter: Any, value: Any, asked: str) -> None:
    seen: list[str] = []
    document = written(tmp_path, {"/x": {"get": {"operationId": "x", "parameters": [parameter]}}})

    def answer(handler: Any) -> None:
        seen.append(handler.path)
        handler.send_response(204)
        handler.send_header("content-length", "0")
        handler.end_headers()

    site.pages["/x"] = answer
    assert call(local(site, document), "x", q=value).data is None
    assert seen[0].replace("%22", '"').replace("%20", "+").startswith(f"/x{asked}")


@pytest.mark.parametrize("value", ["../secret", "a/b", "..%2fsecret", "a?b=c", "a#b", "a%00b", "a;b", "ü"])
def test_a_path_parameter_stays_one_segment(site: WebServer, tmp_path: Path, value: str) -> None:
    parameter = {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}
    document = written(tmp_path, {"/things/{id}/end": {"get": {"operationId": "x", "parameters": [parameter]}}})
    with pytest.raises(ToolError, match="404"):
        call(local(site, document), "x", id=value)
    assert site.seen[0].path.count("/") == 3
    assert site.seen[0].path.startswith("/things/")
    assert site.seen[0].path.endswith("/end")
    for refused in ("..", ".", ""):
        with pytest.raises(ToolArguments, match="path"):
            call(local(site, document), "x", id=refused)


def test_headers_and_cookies(site: WebServer, tmp_path: Path) -> None:
    parameters = [
        {"name": "X-Count", "in": "header", "schema": {"type": "integer"}},
        {"name": "X-Text", "in": "header", "schema": {"type": "string"}},
        {"name": "Authorization", "in": "header", "required": True, "schema": {"type": "string"}},
        {"name": "sid", "in": "cookie", "schema": {"type": "string"}},
    ]
    document = written(tmp_path, {"/x": {"get": {"operationId": "x", "parameters": parameters}}})
    site.page("/x", "fine", "text/plain")
    assert call(local(site, document), "x", **{"X-Count": 3, "sid": "a;b"}).text == "fine"
    assert site.seen[0].headers["x-count"] == "3"
    assert site.seen[0].headers["cookie"] == "sid=a%3Bb"
    with pytest.raises(ToolArguments, match="line breaks"):
        call(local(site, document), "x", **{"X-Text": "a\r\nX-Evil: 1"})
    with pytest.raises(ToolArguments, match="Authorization"):
        call(local(site, document), "x", Authorization="mine")


def _body(mime: str, schema: Any) -> dict[str, Any]:
    body = {"required": True, "content": {mime: {"schema": schema}}}
    return {"/x": {"post": {"operationId": "x", "requestBody": body}}}


def test_bodies_of_each_kind(site: WebServer, tmp_path: Path) -> None:
    site.page("/x", "ok", "text/plain")
    thing = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "array"}}, "required": ["a"]}
    call(local(site, written(tmp_path, _body("application/json; charset=utf-8", thing))), "x", body={"a": 1})
    assert site.seen[-1].body == b'{"a":1}'
    with pytest.raises(ToolArguments, match="body"):
        call(local(site, written(tmp_path, _body("application/json", thing))), "x", body={"b": []})
    with pytest.raises(ToolArguments, match="body"):
        call(local(site, written(tmp_path, _body("application/json", thing))), "x")
    call(
        local(site, written(tmp_path, _body("application/x-www-form-urlencoded", thing))),
        "x",
        body={"a": 1, "b": [2, "x&"]},
    )
    assert site.seen[-1].body == b"a=1&b=2&b=x%26"
    call(local(site, written(tmp_path, _body("text/plain", {"type": "string"}))), "x", body="hällo")
    assert site.seen[-1].body == "hällo".encode()
    picture = File.from_bytes(b"\x89PNG\r\n\x1a\n", name="p.png")
    call(local(site, written(tmp_path, _body("application/octet-stream", {}))), "x", {"p": picture}, body="p")
    assert site.seen[-1].body == picture.bytes()
    form = {"type": "object", "properties": {"f": {"type": "string", "format": "binary"}, "t": {"type": "string"}}}
    call(
        local(site, written(tmp_path, _body("multipart/form-data", form))),
        "x",
        {"p": picture},
        body={"f": "p", "t": "x"},
    )
    sent = site.seen[-1]
    assert sent.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert b'name="f"; filename="p.png"\r\ncontent-type: image/png\r\n\r\n\x89PNG' in sent.body
    assert b'name="t"\r\n\r\nx\r\n' in sent.body


def test_what_comes_back(site: WebServer, tmp_path: Path) -> None:
    api = local(site, written(tmp_path, {"/x": {"get": {"operationId": "x"}}}))
    site.page("/x", '{"a": [1, null]}', "application/problem+json")
    assert call(api, "x").data == {"a": [1, None]}
    site.page("/x", "a,b\n1,2", "text/csv")
    assert call(api, "x").text == "a,b\n1,2"
    site.page("/x", b"\x89PNG\r\n\x1a\n" + bytes(9), "image/png")
    (image,) = call(api, "x").media.values()
    assert image.kind.value == "image"
    site.page("/x", bytes(range(256)), "application/octet-stream")
    (file,) = call(api, "x").media.values()
    assert file.bytes() == bytes(range(256))
    site.page("/x", "{", "application/json")
    with pytest.raises(ToolError, match="damaged JSON"):
        call(api, "x")


@pytest.mark.parametrize(
    ("status", "hint"),
    [(400, "change them"), (401, "key"), (404, "nothing"), (429, "wait"), (500, "later"), (302, "moved")],
)
def test_an_error_says_what_the_api_said(site: WebServer, tmp_path: Path, status: int, hint: str) -> None:
    site.page("/x", '{"error": "no such city"}', "application/json", status=status, headers={"location": "/y"})
    paths = {"/x": {"post": {"operationId": "x"}}}
    with pytest.raises(ToolError, match="no such city") as caught:
        call(local(site, written(tmp_path, paths)), "x")
    assert str(status) in str(caught.value)
    assert hint in caught.value.hint
    assert len(site.seen) == 1


# Keys.

SCHEMES = {
    "query": {"type": "apiKey", "in": "query", "name": "appid"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Key"},
    "cookie": {"type": "apiKey", "in": "cookie", "name": "k"},
    "bearer": {"type": "http", "scheme": "Bearer"},
    "basic": {"type": "http", "scheme": "basic"},
    "oauth": {"type": "oauth2", "flows": {}},
    "digest": {"type": "http", "scheme": "digest"},
}


def _secured(tmp_path: Path, security: Any) -> Path:
    paths = {"/x": {"get": {"operationId": "x", "security": security}}}
    return written(tmp_path, paths, components={"securitySchemes": SCHEMES})


@pytest.mark.parametrize(
    ("scheme", "where"),
    [
        ("query", "query:appid=k-1"),
        ("header", "x-key:k-1"),
        ("cookie", "cookie:k=k-1"),
        ("bearer", "authorization:Bearer k-1"),
        ("basic", "authorization:Basic ay0x"),
        ("oauth", "authorization:Bearer k-1"),
    ],
)
def test_a_key_goes_where_the_scheme_says(
    site: WebServer, tmp_path: Path, scheme: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEY", "k-1")
    site.page("/x", "ok", "text/plain")
    api = local(site, _secured(tmp_path, [{scheme: []}]), keys={scheme: "env:API_KEY"})
    call(api, "x")
    place, _, value = where.partition(":")
    seen = site.seen[0]
    assert value == (f"appid={seen.query['appid']}" if place == "query" else seen.headers[place])
    assert "k-1" not in repr(api)
    site.page("/x", "", status=500)
    with pytest.raises(ToolError) as caught:
        call(api, "x")
    assert "k-1" not in str(caught.value)


def test_keys_that_are_missing_or_unknown(site: WebServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "k-1")
    monkeypatch.setenv("BAD_KEY", "k\r\nX-Evil: 1")
    site.page("/x", "ok", "text/plain")
    with pytest.raises((ToolError, ConfigError), match="needs a key for bearer or header"):
        call(local(site, _secured(tmp_path, [{"bearer": []}, {"header": []}])), "x")
    with pytest.raises(ConfigError, match="no security scheme 'other'"):
        call(local(site, _secured(tmp_path, []), keys={"other": "env:API_KEY"}), "x")
    with pytest.raises(ConfigError, match="not supported"):
        call(local(site, _secured(tmp_path, []), keys={"digest": "env:API_KEY"}), "x")
    with pytest.raises((ToolError, ConfigError), match="control characters"):
        call(local(site, _secured(tmp_path, [{"header": []}]), keys={"header": "env:BAD_KEY"}), "x")
    call(local(site, _secured(tmp_path, [{}, {"header": []}])), "x")
    both = local(
        site, _secured(tmp_path, [{"bearer": [], "query": []}]), keys=dict.fromkeys(["bearer", "query"], "env:API_KEY")
    )
    call(both, "x")
    assert site.seen[-1].query == {"appid": "k-1"}


# Documents.


def test_schemas_that_contain_themselves(site: WebServer, tmp_path: Path) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/components/schemas/Node"}, "n": {"type": "integer"}}}
    components = {"schemas": {"Node": node, "Both": {"allOf": [{"$ref": "#/components/schemas/Node"}]}}}
    paths = _body("application/json", {"$ref": "#/components/schemas/Both"})
    api = local(site, written(tmp_path, paths, components=components))
    site.page("/x", "ok", "text/plain")
    call(api, "x", body={"n": 1, "next": {"n": 2, "next": {"n": 3}}})
    with pytest.raises(ToolArguments, match="next"):
        call(api, "x", body={"n": 1, "next": {"n": 2, "next": {"n": "three"}}})


def test_what_3_0_writes_otherwise_is_understood() -> None:
    properties = {
        "id": {"type": "integer", "readOnly": True},
        "n": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "nullable": True},
        "e": {"type": "string", "enum": ["a"], "nullable": True, "example": "a"},
    }
    thing = {"type": "object", "required": ["id", "n"], "properties": properties}
    content = {"application/json": {"schema": thing}}
    document = {"openapi": "3.0.3", "paths": {"/x": {"post": {"requestBody": {"content": content}}}}}
    (operation,) = operations_of(document)
    assert operation.name == "post_x"
    body = operation.schema["properties"]["body"]
    assert body["required"] == ["n"]
    assert body["properties"] == {
        "n": {"type": ["number", "null"], "exclusiveMinimum": 0},
        "e": {"type": ["string", "null"], "enum": ["a", None]},
    }


def test_names_are_made_fit_and_different(tmp_path: Path) -> None:
    paths = {
        "/a/{id}": {"get": {}, "delete": {"operationId": "drop it!"}},
        "/b": {"get": {"operationId": "same"}, "post": {"operationId": "same"}},
        "/" + "c" * 200: {"get": {}},
    }
    names = [operation.name for operation in operations_of({"openapi": "3.1.0", "paths": paths})]
    assert names[:4] == ["get_a_id", "drop_it", "same", "same_2"]
    assert all(len(name) <= 64 for name in names)
    offered = tools(
        OpenApiOptions({"": ApiOptions(str(written(tmp_path, paths)), base_url="http://x", operations=("s*",))})
    )
    assert [tool.info.name for tool in offered] == ["same", "same_2"]
    reading = tools(
        OpenApiOptions({"a": ApiOptions(str(written(tmp_path, paths)), base_url="http://x", read_only=True)})
    )
    assert all(tool.info.annotations.read_only for tool in reading)
    assert len(reading) == 3


BOMB = "openapi: 3.1.0\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not say"),
        ("[]", "does not say"),
        ("swagger: '2.0'", "does not say"),
        ("openapi: 2.0", "it says openapi: 2.0"),
        ("a: [", "neither JSON nor YAML"),
        ("openapi: !!python/object/apply:os.system ['true']", "neither JSON nor YAML"),
    ],
)
def test_what_is_no_document_is_said(text: str, says: str) -> None:
    with pytest.raises(ToolDefinition, match=says):
        parse_document(text.encode(), "it")


@pytest.mark.parametrize(
    "paths",
    [
        [1],
        {"/x": 1},
        {"/x": {"$ref": "#/paths/~1x"}},
        {"/x": {"get": {"parameters": [{"in": "query"}]}}},
        {"/x": {"get": {"parameters": [{"$ref": "other.yaml#/x"}]}}},
        {"/x": {"get": {"parameters": [{"$ref": "file:///etc/passwd"}]}}},
        {"/x": {"get": {"parameters": [{"$ref": "#/nowhere"}]}}},
        _body("application/json", {"$ref": "http://169.254.169.254/schema"}),
        _body("application/json", {"type": "object", "properties": {f"p{n}": {} for n in range(5000)}}),
    ],
)
def test_hostile_documents_are_refused(paths: Any) -> None:
    with pytest.raises(ToolDefinition):
        operations_of({"openapi": "3.1.0", "paths": paths})


def test_a_yaml_bomb_costs_nothing() -> None:
    bomb = parse_document(BOMB.encode(), "it")
    schema = {"enum": bomb["h"]}
    (operation,) = operations_of({"openapi": "3.1.0", "paths": _body("application/json", schema)})
    assert operation.name == "x"


def test_a_document_from_an_address(site: WebServer) -> None:
    site.page("/doc/api.yaml", (EXAMPLES / "finance.yaml").read_text().replace("https://api.frankfurter.dev/v1", "/v1"))
    site.page("/v1/currencies", "{}", "application/json")
    api = ApiOptions(f"{site.url}/doc/api.yaml", allow=LOCAL)
    assert call(api, "currencies").data == {}
    with pytest.raises(FetchRefused):
        tools(OpenApiOptions({"a": ApiOptions(f"{site.url}/doc/api.yaml")}))


def test_an_api_that_is_not_public_is_not_asked(site: WebServer, tmp_path: Path) -> None:
    site.page("/x", "secret")
    document = written(tmp_path, {"/x": {"get": {"operationId": "x"}}}, servers=[{"url": site.url}])
    with pytest.raises(FetchRefused):
        call(ApiOptions(str(document)), "x")
    assert site.seen == []
    with pytest.raises(ToolDefinition, match="no operation"):
        tools(OpenApiOptions({"a": ApiOptions(str(document), operations=("y",))}))
    with pytest.raises(ToolDefinition, match="names no server"):
        call(ApiOptions(str(written(tmp_path, {"/x": {"get": {"operationId": "x"}}}))), "x")
    with pytest.raises(ConfigError, match="no API"):
        tools(OpenApiOptions())
