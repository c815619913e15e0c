"""A document as passages that each know where they are: lines of a text, a page of a PDF, a heading above."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ...values import sniffed_mime
from ..files.text import encoding_of
from ..optional import need
from ..web.readable import pdf_pages

# Characters: what a passage aims at, and the most that it has. A line longer than that is cut.
TARGET = 1200
MOST = 2400
TEXT_ENDINGS = (
    *(".txt", ".md", ".markdown", ".rst", ".org", ".tex", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml"),
    *(".ini", ".cfg", ".log", ".xml", ".sql", ".py", ".js", ".ts", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".sh"),
)
HTML_ENDINGS = (".html", ".htm", ".xhtml")
PDF_ENDINGS = (".pdf",)
ENDINGS = (*TEXT_ENDINGS, *HTML_ENDINGS, *PDF_ENDINGS)
_HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*$")


@dataclass(frozen=True, slots=True)
class Chunk:
    """`first` and `last`: lines, or pages where `by_page`, from 1. `heading`: what it stands under."""

    text: str
    first: int
    last: int
    by_page: bool = False
    heading: str = ""


def chunks_of(name: str, data: bytes, given_up: Callable[[], bool] = lambda: False) -> list[Chunk]:
    """The passages of a file; none where it holds no text. Raises ToolError for a damaged PDF."""
    ending = "." + name.lower().rpartition(".")[2]
    if ending in PDF_ENDINGS or sniffed_mime(data[:16]) == "application/pdf":
        _, pages = pdf_pages(data, given_up)
        return [chunk for number, page in enumerate(pages, 1) for chunk in _page(page, number)]
    encoding = encoding_of(data)
    if encoding is None:
        return []
    text = data.decode(encoding, "replace")
    if ending in HTML_ENDINGS:
        text = _html_text(text)
    return list(_lines(text, is_markdown=ending in (".md", ".markdown")))


def _html_text(text: str) -> str:
    """Its words, line for line as in the source, so that a line number means something to whoever opens the file."""
    html = need("lxml.html", "tools", "reading HTML documents")
    if not text.strip():
        return ""
    tree = html.document_fromstring(text.encode(), parser=html.HTMLParser(encoding="utf-8", no_network=True))
    lines: dict[int, list[str]] = {}
    for element in tree.iter():
        if not isinstance(element.tag, str) or element.tag in ("script", "style", "noscript", "template"):
            own = ""
        else:
            own = element.text or ""
        for words, line in ((own, element.sourceline or 1), (element.tail or "", element.sourceline or 1)):
            if words.strip():
                lines.setdefault(line, []).append(" ".join(words.split()))
    last = max(lines, default=0)
    return "\n".join(" ".join(lines.get(number, ())) for number in range(1, last + 1))


def _page(text: str, number: int) -> Iterator[Chunk]:
    for chunk in _lines(text, is_markdown=False):
        yield Chunk(chunk.text, number, number, True)


def _lines(text: str, *, is_markdown: bool) -> Iterator[Chunk]:
    """Lines together until there are enough, cut where a paragraph or a section ends."""
    heading, under = "", ""
    held: list[str] = []
    first, size = 1, 0
    in_code = False

    def made(last: int) -> Iterator[Chunk]:
        filled = [place for place, line in enumerate(held) if line.strip()]
        if filled:
            start, end = filled[0], filled[-1] + 1
            yield Chunk("\n".join(held[start:end]), first + start, last - len(held) + end, heading=under)

    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        found = _HEADING.match(line) if is_markdown and not in_code else None
        ends = found is not None or (size >= TARGET and not line.strip()) or size + len(line) > MOST
        if ends and held:
            yield from made(number - 1)
            held, first, size = [], number, 0
        if found is not None:
            heading = found[1]
        if not held:
            under = heading
        while len(line) > MOST:
            held.append(line[:MOST])
            yield from made(number)
            held, first, size, line = [], number, 0, line[MOST:]
        held.append(line)
        size += len(line) + 1
    if held:
        yield from made(first + len(held) - 1)
