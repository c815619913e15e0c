"""arXiv by its Atom interface: search, a paper's record, its text. (info.arxiv.org/help/api/user-manual)"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

import anyio

from ...errors import ToolError
from ..net.client import Client
from ..net.errors import FetchFailed
from ..optional import need

API_URL = "https://export.arxiv.org/api/query"
PDF_URL = "https://export.arxiv.org/pdf/"
# arXiv asks for no more than one request in three seconds.
INTERVAL_S = 3.0
_NAMES = {"a": "http://www.w3.org/2005/Atom", "x": "http://arxiv.org/schemas/atom"}
# 2301.00001, 2301.00001v2, hep-th/9901001v1, with or without an address or `arXiv:` before it.
_ID = re.compile(
    r"(?:.*arxiv\.org/(?:abs|pdf)/|arxiv:)?"
    r"((?:\d{4}\.\d{4,5}|[a-z-]+(?:\.[A-Z]{2})?/\d{7})(?:v\d+)?)(?:\.pdf)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Paper:
    id: str
    title: str
    authors: list[str]
    abstract: str
    published: str
    updated: str
    categories: list[str]
    url: str
    pdf: str
    comment: str = ""
    journal: str = ""
    doi: str = ""


class Arxiv:
    """Requests to arXiv, one after another and no faster than it asks for."""

    def __init__(
        self, client: Client, api_url: str = API_URL, pdf_url: str = PDF_URL, interval: float = INTERVAL_S
    ) -> None:
        self._client = client
        self._api_url = api_url
        self._pdf_url = pdf_url
        self._interval = interval
        self._turn = anyio.Lock()
        self._next = 0.0

    async def search(self, query: str, limit: int, newest: bool = False) -> list[Paper]:
        """Papers by arXiv's own query syntax, `au:hinton AND ti:capsules`, or plain words."""
        wanted = query if re.search(r"\b(ti|au|abs|co|jr|cat|rn|id|all):", query) else _all_words(query)
        order = "submittedDate" if newest else "relevance"
        params = [("search_query", wanted), ("max_results", str(limit)), ("sortBy", order), ("sortOrder", "descending")]
        return await self._papers(params)

    async def paper(self, id: str) -> Paper:
        found = await self._papers([("id_list", arxiv_id(id))])
        if not found:
            raise ToolError(f"arXiv has no paper {id}")
        return found[0]

    async def pdf(self, id: str) -> bytes:
        answer = await self._get(self._pdf_url + arxiv_id(id), [])
        if not answer.startswith(b"%PDF-"):
            raise FetchFailed(f"arXiv has no PDF of {id}")
        return answer

    async def _papers(self, params: list[tuple[str, str]]) -> list[Paper]:
        etree = need("lxml.etree", "tools", "reading arXiv's answers")
        body = await self._get(self._api_url, params)
        try:
            feed = etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False))
        except etree.XMLSyntaxError as error:
            raise FetchFailed("arXiv answers with something that is no feed") from error
        entries = feed.xpath("//a:entry", namespaces=_NAMES)
        # It reports an error as an entry.
        if len(entries) == 1 and _text(entries[0], "a:title") == "Error":
            raise ToolError(f"arXiv does not take the query: {_text(entries[0], 'a:summary')}")
        return [_paper(entry) for entry in entries if _text(entry, "a:id")]

    async def _get(self, url: str, params: list[tuple[str, str]]) -> bytes:
        async with self._turn:
            await anyio.sleep(max(0.0, self._next - time.monotonic()))
            try:
                answer = await self._client.request("GET", url, params=params)
            finally:
                self._next = time.monotonic() + self._interval
        if answer.status != 200:
            raise FetchFailed(f"arXiv answers with status {answer.status}", hint="try again in a few seconds")
        return answer.body


def arxiv_id(text: str) -> str:
    """The identifier in an address, or alone. Raises ToolError."""
    found = _ID.fullmatch(text.strip())
    if found is None:
        raise ToolError(f"'{text[:100]}' is no identifier of arXiv", hint="give one like 1706.03762 or hep-th/9901001")
    return found[1]


def _all_words(query: str) -> str:
    words = re.findall(r"[\w.-]+", query)
    if not words:
        raise ToolError("the query has no words")
    return " AND ".join(f"all:{word}" for word in words)


def _text(entry: Any, path: str) -> str:
    return " ".join(entry.xpath(f"string({path})", namespaces=_NAMES).split())


def _paper(entry: Any) -> Paper:
    url = _text(entry, "a:id")
    id = _ID.fullmatch(url)
    return Paper(
        id=id[1] if id else url,
        title=_text(entry, "a:title"),
        authors=[" ".join(name.split()) for name in entry.xpath("a:author/a:name/text()", namespaces=_NAMES)],
        abstract=_text(entry, "a:summary"),
        published=_text(entry, "a:published"),
        updated=_text(entry, "a:updated"),
        categories=[str(term) for term in entry.xpath("a:category/@term", namespaces=_NAMES)],
        url=url,
        pdf=_text(entry, "a:link[@title='pdf']/@href"),
        comment=_text(entry, "x:comment"),
        journal=_text(entry, "x:journal_ref"),
        doi=_text(entry, "x:doi"),
    )
