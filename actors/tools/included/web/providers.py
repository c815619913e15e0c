"""Search engines, each a small class: it makes the request and reads the answer. Keys are named, never written.

Other packages announce theirs as entry points of the group `callboard.search`; the settings may also name a class as
`module:Class`, of a module that the set's process can import.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html import unescape
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qs, urljoin, urlsplit

import msgspec

from .....runtime.errors import ConfigError
from .....runtime.registry import SEARCH, Entry, registry
from ...errors import ToolError
from ..keys import secret
from ..net.client import Answer, Client
from ..net.errors import FetchFailed
from ..optional import need


class SearchOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`provider`: searxng, brave, tavily, serper or duckduckgo, one that a package announces, or `module:Class`.
    `key`: `env:NAME` or `file:PATH`. `url`: where it is, for SearXNG and for others that are not at their usual place.
    `more`: what a provider of another package takes beside these."""

    provider: str = ""
    key: str = ""
    url: str = ""
    more: dict[str, Any] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hit:
    title: str
    url: str
    snippet: str = ""
    published: str = ""


class Provider(Protocol):
    """Made once, when the tool is first used; raises ConfigError for options that are not enough. `search` raises
    FetchFailed, and ConfigError where its key cannot be read. `client` bounds time and size of an answer. It goes to
    any address, private ones included, so redirects are not to be followed (`redirects=0`)."""

    name: ClassVar[str]

    def __init__(self, options: SearchOptions) -> None: ...
    async def search(self, client: Client, query: str, limit: int) -> list[Hit]: ...


class SearXNG:
    """An instance of one's own; its settings must allow the format json."""

    name: ClassVar[str] = "searxng"

    def __init__(self, options: SearchOptions) -> None:
        if not options.url:
            raise ConfigError("SearXNG needs the `url` of an instance", hint="http://127.0.0.1:8888, say")
        self._url = options.url

    async def search(self, client: Client, query: str, limit: int) -> list[Hit]:
        answer = await client.request(
            "GET", _below(self._url, "search"), params=[("q", query), ("format", "json")], redirects=0
        )
        found = _object(answer, self.name).get("results", [])
        return [_hit(each, "title", "url", "content", "publishedDate") for each in found[:limit]]


class Brave:
    name: ClassVar[str] = "brave"

    def __init__(self, options: SearchOptions) -> None:
        self._url = options.url or "https://api.search.brave.com/res/v1/web/search"
        self._key = options.key

    async def search(self, client: Client, query: str, limit: int) -> list[Hit]:
        answer = await client.request(
            "GET",
            self._url,
            params=[("q", query), ("count", str(min(limit, 20)))],
            headers={"x-subscription-token": secret(self._key), "accept": "application/json"},
            redirects=0,
        )
        found = _object(answer, self.name).get("web", {}).get("results", [])
        return [_hit(each, "title", "url", "description", "page_age") for each in found[:limit]]


class Tavily:
    name: ClassVar[str] = "tavily"

    def __init__(self, options: SearchOptions) -> None:
        self._url = options.url or "https://api.tavily.com/search"
        self._key = options.key

    async def search(self, client: Client, query: str, limit: int) -> list[Hit]:
        answer = await _post(client, self._url, {"query": query, "max_results": min(limit, 20)}, self._bearer())
        found = _object(answer, self.name).get("results", [])
        return [_hit(each, "title", "url", "content", "published_date") for each in found[:limit]]

    def _bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {secret(self._key)}"}


class Serper:
    name: ClassVar[str] = "serper"

    def __init__(self, options: SearchOptions) -> None:
        self._url = options.url or "https://google.serper.dev/search"
        self._key = options.key

    async def search(self, client: Client, query: str, limit: int) -> list[Hit]:
        answer = await _post(client, self._url, {"q": query, "num": limit}, {"x-api-key": secret(self._key)})
        found = _object(answer, self.name).get("organic", [])
        return [_hit(each, "title", "link", "snippet", "date") for each in found[:limit]]


class DuckDuckGo:
    """Its page for browsers without JavaScript: no key, few requests, and it may ask for a human."""

    name: ClassVar[str] = "duckduckgo"

    def __init__(self, options: SearchOptions) -> None:
        self._url = options.url or "https://html.duckduckgo.com/html/"

    async def search(self, client: Client, query: str, limit: int) -> list[Hit]:
        answer = await client.request("GET", self._url, params=[("q", query)], redirects=0)
        if answer.status != 200:
            raise FetchFailed(
                f"DuckDuckGo answers with status {answer.status}", hint="it limits requests: wait, or set a provider"
            )
        html = need("lxml.html", "tools", "reading a page of results")
        tree = html.fromstring(answer.body.decode("utf-8", "replace") or "<html/>")
        hits: list[Hit] = []
        for result in tree.xpath("//div[contains(concat(' ', @class, ' '), ' result ')]"):
            links = result.xpath(".//a[contains(@class, 'result__a')]")
            if not links or "result--ad" in result.get("class", ""):
                continue
            snippet = " ".join("".join(result.xpath("string(.//*[contains(@class, 'result__snippet')][1])")).split())
            hits.append(Hit(" ".join(links[0].text_content().split()), _target(links[0].get("href", "")), snippet))
        return hits[:limit]


PROVIDERS: dict[str, type[Provider]] = {
    provider.name: provider for provider in (SearXNG, Brave, Tavily, Serper, DuckDuckGo)
}


def provider_of(options: SearchOptions) -> Provider:
    """Raises ConfigError."""
    if not options.provider:
        raise ConfigError(
            "no search provider is set",
            hint='`[tools.web.search]` of callboard.toml: provider = "brave", key = "env:BRAVE_API_KEY"',
        )
    found = PROVIDERS.get(options.provider)
    if found is None:
        return _of_others(options.provider)(options)
    if found in (Brave, Tavily, Serper) and not options.key:
        raise ConfigError(f"{options.provider} needs a key", hint="`key` is env:NAME or file:PATH")
    return found(options)


def _of_others(name: str) -> type[Provider]:
    """One that a package announces, or `module:Class`. Raises ConfigError."""
    announced = registry().entries(SEARCH)
    entry = Entry(name, name, "") if ":" in name else announced.get(name)
    if entry is None:
        raise ConfigError(
            f"there is no search provider '{name}'", hint=f"there are: {', '.join([*PROVIDERS, *announced])}"
        )
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the search provider '{name}' cannot be loaded: {error}") from error
    if not (isinstance(found, type) and inspect.iscoroutinefunction(getattr(found, "search", None))):
        raise ConfigError(f"'{entry.value}' is no search provider", hint="it is a class with an `async def search`")
    return found


async def _post(client: Client, url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer:
    everything = {"content-type": "application/json", "accept": "application/json", **headers}
    return await client.request("POST", url, content=json.dumps(body).encode(), headers=everything, redirects=0)


def _object(answer: Answer, name: str) -> dict[str, Any]:
    """The answer's JSON object. What an error page says stays out: it may repeat the key."""
    if answer.status in (401, 403):
        raise ConfigError(f"{name} refuses the key (status {answer.status})", hint="is it right, and paid for?")
    if answer.status == 429:
        raise FetchFailed(f"{name} has had too many requests", hint="wait a little, and ask again")
    if answer.status != 200:
        raise FetchFailed(f"{name} answers with status {answer.status}", hint="try again later")
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError as error:
        raise FetchFailed(f"{name} answers with something that is no JSON") from error
    if not isinstance(found, dict):
        raise FetchFailed(f"{name} answers with something else than results")
    return found


def _hit(found: Mapping[str, Any], title: str, url: str, snippet: str, published: str) -> Hit:
    def text(key: str) -> str:
        value = found.get(key)
        return " ".join(unescape(value).split()) if isinstance(value, str) else ""

    if not isinstance(found, dict):
        raise ToolError("the search provider answers with results of another form")
    return Hit(text(title), text(url), text(snippet), text(published))


def _below(url: str, path: str) -> str:
    return urljoin(url if url.endswith("/") else url + "/", path)


def _target(link: str) -> str:
    """DuckDuckGo's links lead through a page of its own that has the target in `uddg`."""
    target = parse_qs(urlsplit(link).query).get("uddg")
    return target[0] if target else urljoin("https://duckduckgo.com", link)
