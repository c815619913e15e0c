"""Search and arXiv, against servers that answer in their shapes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from pdf_files import pdf
from web_calls import called
from web_server import WebServer, serving

from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.included.keys import secret
from callboard.actors.tools.included.web import providers
from callboard.actors.tools.included.web.arxiv import arxiv_id
from callboard.actors.tools.included.web.providers import PROVIDERS, SearchOptions
from callboard.actors.tools.included.web.tools import ArxivOptions, WebOptions, arxiv, web
from callboard.actors.tools.tool import Tool
from callboard.runtime.errors import ConfigError
from callboard.runtime.registry import Registry


@pytest.fixture
def site() -> Iterator[WebServer]:
    with serving() as server:
        yield server


RESULTS = {
    "searxng": {"results": [{"title": "A &amp; B", "url": "https://a.example/", "content": "about  a"}] * 3},
    "brave": {"web": {"results": [{"title": "A & B", "url": "https://a.example/", "description": "about a"}] * 3}},
    "tavily": {"results": [{"title": "A & B", "url": "https://a.example/", "content": "about a"}] * 3},
    "serper": {"organic": [{"title": "A & B", "link": "https://a.example/", "snippet": "about a"}] * 3},
}
DUCK = """<html><body><div class="result results_links"><h2><a class="result__a"
href="//duckduckgo.com/l/?uddg=https%3A%2F%2Fa.example%2F&rut=1">A &amp; <b>B</b></a></h2>
<a class="result__snippet">about a</a></div><div class="result result--ad"><a class="result__a" href="x">Ad</a></div>
</body></html>"""


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_each_provider_is_asked_in_its_own_way(site: WebServer, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "very-secret")
    if name == "duckduckgo":
        site.page("/search", DUCK)
    else:
        site.page("/search", json.dumps(RESULTS[name]), "application/json")
    url = site.url if name == "searxng" else f"{site.url}/search"
    options = WebOptions(search=SearchOptions(name, "env:SEARCH_KEY", url))
    outcome = called(web(options), "search", query="what is a", limit=2)
    assert outcome.data[0] == {"title": "A & B", "url": "https://a.example/", "snippet": "about a", "published": ""}
    assert len(outcome.data) == (1 if name == "duckduckgo" else 2)
    seen = site.seen[0]
    assert seen.query.get("q") == "what is a" or b"what is a" in seen.body
    shown = {"brave": "x-subscription-token", "serper": "x-api-key", "tavily": "authorization"}.get(name)
    assert shown is None or seen.headers[shown].endswith("very-secret")
    assert "very-secret" not in repr(options) + outcome.text


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, "bad key very-secret", "refuses the key"),
        (429, "", "too many requests"),
        (500, "very-secret", "status 500"),
        (302, "", "status 302"),
        (200, "<html>", "no JSON"),
        (200, "[]", "something else"),
    ],
)
def test_a_providers_errors_do_not_show_the_key(
    site: WebServer, status: int, body: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEARCH_KEY", "very-secret")
    site.page("/search", body, "application/json", status=status, headers={"location": "http://169.254.169.254/"})
    options = WebOptions(search=SearchOptions("brave", "env:SEARCH_KEY", f"{site.url}/search"))
    with pytest.raises((ToolError, ConfigError), match=says) as caught:
        called(web(options), "search", query="x")
    assert "very-secret" not in str(caught.value) + caught.value.hint + caught.value.detail


def test_a_provider_must_be_named_and_have_its_key(tmp_path: Any) -> None:
    for options, says in (
        (SearchOptions(), "no search provider"),
        (SearchOptions("brav"), "no search provider 'brav'"),
        (SearchOptions("brave"), "needs a key"),
        (SearchOptions("searxng"), "needs the `url`"),
        (SearchOptions("brave", "env:NO_SUCH_KEY"), "NO_SUCH_KEY is not set"),
    ):
        with pytest.raises((ToolError, ConfigError), match=says):
            called(web(WebOptions(search=options)), "search", query="x")
    (tmp_path / "key").write_text("k1\n")
    assert secret(f"file:{tmp_path / 'key'}") == "k1"
    with pytest.raises(ConfigError) as caught:
        secret("sk-a-key-itself")
    assert "sk-a" not in str(caught.value)


# Providers of other packages.

LIBRARY = """
from callboard.actors.tools.included.web.providers import Hit

class Library:
    name = "library"

    def __init__(self, options):
        self._url, self._shelf = options.url, options.more["shelf"]

    async def search(self, client, query, limit):
        answer = await client.request("GET", self._url, params=[("words", query), ("shelf", self._shelf)])
        return [Hit(line, self._url) for line in answer.body.decode().splitlines()[:limit]]

class NoProvider:
    search = None
"""


def _library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = folder / "a_library-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: a_library\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[callboard.search]\nlibrary = a_library:Library\n")
    (folder / "a_library.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(providers, "registry", lambda: Registry(folder / "cache"))


@pytest.mark.parametrize("name", ["library", "a_library:Library"])
def test_a_provider_of_another_package_is_asked(
    site: WebServer, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _library(tmp_path, monkeypatch)
    site.page("/search", "one\ntwo\nthree", "text/plain")
    search = SearchOptions(name, url=f"{site.url}/search", more={"shelf": "7"})
    outcome = called(web(WebOptions(search=search)), "search", query="what is a", limit=2)
    assert [hit["title"] for hit in outcome.data] == ["one", "two"]
    assert (site.seen[0].query["words"], site.seen[0].query["shelf"]) == ("what is a", "7")


def test_what_is_no_provider_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _library(tmp_path, monkeypatch)
    for name, says in (
        ("librar", "no search provider 'librar'"),
        ("a_library:NoProvider", "is no search provider"),
        ("a_library:Nothing", "cannot be loaded"),
        ("no_such_module:Library", "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=says) as caught:
            providers.provider_of(SearchOptions(name))
        assert says != "no search provider 'librar'" or "duckduckgo, library" in caught.value.hint


# arXiv.

FEED = """<?xml version="1.0" encoding="UTF-8"?><feed xmlns="http://www.w3.org/2005/Atom"
xmlns:arxiv="http://arxiv.org/schemas/atom"><entry><id>http://arxiv.org/abs/2301.00001v2</id>
<title>A paper
 on things</title><summary> What it says. </summary><author><name>Ada L.</name></author><author><name>B</name></author>
<published>2023-01-01T00:00:00Z</published><updated>2023-02-01T00:00:00Z</updated><category term="cs.CL"/>
<link title="pdf" href="http://arxiv.org/pdf/2301.00001v2" rel="related"/><arxiv:comment>9 pages</arxiv:comment>
</entry></feed>"""


def _arxiv(site: WebServer, interval: float = 0.0) -> list[Tool]:
    return arxiv(ArxivOptions(f"{site.url}/api", f"{site.url}/pdf/", interval))


def test_arxiv_is_searched_and_read(site: WebServer) -> None:
    site.page("/api", FEED, "application/atom+xml")
    found = called(_arxiv(site), "search", query="deep nets", limit=3)
    assert found.data[0]["title"] == "A paper on things"
    assert found.data[0]["authors"] == ["Ada L.", "B"]
    assert found.data[0]["id"] == "2301.00001v2"
    assert found.data[0]["comment"] == "9 pages"
    assert site.seen[0].query["search_query"] == "all:deep AND all:nets"
    called(_arxiv(site), "search", query='au:hinton AND ti:"capsules"', newest=True)
    assert site.seen[1].query["search_query"] == 'au:hinton AND ti:"capsules"'
    assert site.seen[1].query["sortBy"] == "submittedDate"
    assert "What it says." in called(_arxiv(site), "paper", id="arXiv:2301.00001").text
    assert site.seen[2].query["id_list"] == "2301.00001"
    site.page("/pdf/2301.00001", pdf("The text of the paper"), "application/pdf")
    assert "The text of the paper" in called(_arxiv(site), "read", id="https://arxiv.org/abs/2301.00001").text


def test_arxiv_errors_are_said(site: WebServer) -> None:
    error = FEED.replace("A paper\n on things", "Error").replace("What it says.", "malformed id")
    for body, status, says in ((error, 200, "malformed id"), ("<feed", 200, "no feed"), ("", 503, "status 503")):
        site.page("/api", body, "application/atom+xml", status=status)
        with pytest.raises(ToolError, match=says):
            called(_arxiv(site), "paper", id="2301.00001")
    site.page(
        "/api",
        FEED.replace("<feed", "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><feed").replace(
            "What it says.", "&e;"
        ),
        "application/atom+xml",
    )
    assert "root:" not in called(_arxiv(site), "search", query="x").text
    with pytest.raises(ToolError, match="no identifier"):
        called(_arxiv(site), "paper", id="../../etc/passwd")
    with pytest.raises(ToolError, match="no PDF"):
        called(_arxiv(site), "read", id=site.page("/pdf/2301.00002", "<html>") and "2301.00002")


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("1706.03762", "1706.03762"),
        ("arXiv:1706.03762v5", "1706.03762v5"),
        ("https://arxiv.org/pdf/1706.03762v5.pdf", "1706.03762v5"),
        ("hep-th/9901001", "hep-th/9901001"),
        ("http://arxiv.org/abs/math.GT/0309136v1", "math.GT/0309136v1"),
    ],
)
def test_identifiers_of_arxiv(text: str, id: str) -> None:
    assert arxiv_id(text) == id


def test_arxiv_is_asked_no_faster_than_it_wants(site: WebServer) -> None:
    site.page("/api", FEED, "application/atom+xml")
    tools = _arxiv(site, 0.3)

    async def main() -> float:
        before = time.perf_counter()
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(tools[0].call, {"query": "x"})
        took = time.perf_counter() - before
        await tools[0].close()
        return took

    assert anyio.run(main) >= 0.6
