"""The sets `web` (fetch, search) and `arxiv` (search, paper, read)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated

import msgspec

from ...context import ToolContext
from ...outcome import Reply
from ...tool import Tool
from ...values import File, Image
from ..files.tools import shown
from ..net.addresses import networks
from ..net.client import USER_AGENT, Bounds, Client
from ..net.errors import FetchFailed
from .arxiv import API_URL, INTERVAL_S, PDF_URL, Arxiv, Paper
from .providers import Hit, SearchOptions, provider_of
from .readable import pdf_text, readable

Start = Annotated[int, msgspec.Meta(ge=0)]
Chars = Annotated[int, msgspec.Meta(ge=200, le=500_000)]
# Where a provider is was decided by whoever wrote the options, not by a model.
_ANYWHERE = ("0.0.0.0/0", "::/0")


class WebOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`allow`: networks that are not public and may be fetched from all the same. `seconds`, `max_bytes`: a fetch's."""

    allow: tuple[str, ...] = ()
    seconds: Annotated[float, msgspec.Meta(gt=0, le=600)] = 30.0
    max_bytes: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 16 << 20
    user_agent: str = USER_AGENT
    search: SearchOptions = SearchOptions()


class ArxivOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For a mirror: where it is, and the seconds between two requests that it asks for."""

    api_url: str = API_URL
    pdf_url: str = PDF_URL
    interval: Annotated[float, msgspec.Meta(ge=0)] = INTERVAL_S


@dataclass(frozen=True)
class Page:
    """`text` is a part of the page's; `total` is how many characters the whole has. Pictures and files are media."""

    url: str
    status: int
    mime: str
    title: str = ""
    text: str = ""
    start: int = 0
    total: int = 0
    image: Image | None = None
    file: File | None = None


@dataclass(frozen=True)
class PaperText:
    id: str
    title: str
    text: str
    start: int
    total: int


class Fetch(Tool, name="fetch", read_only=True, idempotent=True, concurrency=8, timeout=120.0, version="1"):
    def __init__(self, options: WebOptions) -> None:
        self._options = options

    def setup(self) -> None:
        options = self._options
        bounds = Bounds(options.seconds, options.max_bytes)
        self._client = Client(networks(options.allow), bounds, user_agent=options.user_agent)

    async def close(self) -> None:
        await self._client.aclose()

    async def run(self, context: ToolContext, url: str, start: Start = 0, max_chars: Chars = 20_000) -> Page:
        """Fetch a web address. A page comes as Markdown, a PDF as its text, JSON indented, a picture as an image.

        Args:
            url: The address, with https:// or http://.
            start: The character of the text to begin at, to read on where a long text was cut.
            max_chars: The most characters to give back.
        """
        answer = await self._client.request("GET", url)
        if answer.status >= 400:
            hint = "the address is wrong or the page is gone" if answer.status in (404, 410) else "try another source"
            raise FetchFailed(f"{answer.url} answers with status {answer.status}", hint=hint)
        found = await context.in_thread(partial(readable, answer, lambda: context.cancelled))
        if found.file is not None:
            image = found.file if isinstance(found.file, Image) else None
            page = Page(answer.url, answer.status, found.file.mime, image=image, file=None if image else found.file)
            return Reply(page, f"{answer.url}: {shown(found.file)}")  # pyright: ignore[reportReturnType]
        text, total = found.text[start : start + max_chars], len(found.text)
        page = Page(answer.url, answer.status, answer.mime, found.title, text, start, total)
        heading = f"# {found.title}\n\n" if found.title and not text.startswith("# ") and not start else ""
        return Reply(page, heading + text + more(start, len(text), total))  # pyright: ignore[reportReturnType]


class Search(Tool, name="search", read_only=True, idempotent=True, concurrency=4, version="1"):
    def __init__(self, options: WebOptions) -> None:
        self._options = options

    def setup(self) -> None:
        self._provider = provider_of(self._options.search)
        bounds = Bounds(self._options.seconds, 4 << 20)
        self._client = Client(networks(_ANYWHERE), bounds, user_agent=self._options.user_agent)

    async def close(self) -> None:
        await self._client.aclose()

    async def run(self, query: str, limit: Annotated[int, msgspec.Meta(ge=1, le=20)] = 8) -> list[Hit]:
        """Search the web. Gives titles, addresses and snippets; fetch reads a page.

        Args:
            query: What to look for.
            limit: The most results to give back.
        """
        hits = await self._provider.search(self._client, query, limit)
        text = "\n\n".join(f"{hit.title}\n{hit.url}\n{hit.snippet}" for hit in hits) or "nothing found"
        return Reply(hits, text)  # pyright: ignore[reportReturnType]


class _OfArxiv(Tool):
    """The tools of a set share one queue: arXiv counts requests by who sends them."""

    def __init__(self, options: ArxivOptions, shared: list[tuple[Client, Arxiv]]) -> None:
        self._options = options
        self._shared = shared

    async def setup(self) -> None:
        options = self._options
        if not self._shared:
            client = Client(networks(_ANYWHERE), Bounds(60.0, 64 << 20))
            self._shared.append((client, Arxiv(client, options.api_url, options.pdf_url, options.interval)))
        self.arxiv = self._shared[0][1]

    async def close(self) -> None:
        if self._shared:
            await self._shared.pop()[0].aclose()


class ArxivSearch(_OfArxiv, name="search", read_only=True, idempotent=True, concurrency=4, timeout=120.0, version="1"):
    async def run(
        self, query: str, limit: Annotated[int, msgspec.Meta(ge=1, le=50)] = 10, newest: bool = False
    ) -> list[Paper]:
        """Search arXiv for papers: titles, authors, abstracts.

        Args:
            query: Words, or arXiv's syntax: au:hinton AND ti:"capsules", cat:cs.CL.
            limit: The most papers to give back.
            newest: The newest first, rather than the most relevant.
        """
        papers = await self.arxiv.search(query, limit, newest)
        text = "\n\n".join(paper_text(paper) for paper in papers) or "nothing found"
        return Reply(papers, text)  # pyright: ignore[reportReturnType]


class ArxivPaper(_OfArxiv, name="paper", read_only=True, idempotent=True, concurrency=4, timeout=120.0, version="1"):
    async def run(self, id: str) -> Paper:
        """Look up a paper on arXiv: title, authors, abstract, dates.

        Args:
            id: The identifier, like 1706.03762, or an address at arxiv.org.
        """
        paper = await self.arxiv.paper(id)
        return Reply(paper, paper_text(paper))  # pyright: ignore[reportReturnType]


class ArxivRead(_OfArxiv, name="read", read_only=True, idempotent=True, concurrency=2, timeout=180.0, version="1"):
    async def run(self, context: ToolContext, id: str, start: Start = 0, max_chars: Chars = 20_000) -> PaperText:
        """Read the text of a paper on arXiv, from its PDF.

        Args:
            id: The identifier, like 1706.03762, or an address at arxiv.org.
            start: The character to begin at, to read on where the text was cut.
            max_chars: The most characters to give back.
        """
        data = await self.arxiv.pdf(id)
        title, text = await context.in_thread(partial(pdf_text, data, given_up=lambda: context.cancelled))
        part = text[start : start + max_chars]
        found = PaperText(id, title, part, start, len(text))
        return Reply(found, part + more(start, len(part), len(text)))  # pyright: ignore[reportReturnType]


def more(start: int, length: int, total: int) -> str:
    """A line that says how to read on, where there is more."""
    if start >= total > 0:
        return f"[the text has only {total} characters]"
    return "" if start + length >= total else f"\n[characters {start} to {start + length} of {total}; go on with start]"


def paper_text(paper: Paper) -> str:
    authors = ", ".join(paper.authors)
    return f"{paper.title}\n{authors}\narXiv:{paper.id}, {paper.published[:10]}\n{paper.abstract}"


def web(options: WebOptions) -> list[Tool]:
    """The set `web`."""
    return [Fetch(options), Search(options)]


def arxiv(options: ArxivOptions) -> list[Tool]:
    """The set `arxiv`."""
    shared: list[tuple[Client, Arxiv]] = []
    return [ArxivSearch(options, shared), ArxivPaper(options, shared), ArxivRead(options, shared)]
