"""What was fetched, as a text for a model: the article of an HTML page as Markdown, the text of a PDF, JSON, texts.

Pictures and everything else are media. Run in a thread: a large page takes a second.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from ...errors import ToolError
from ...values import File, Image, sniffed_mime
from ..files.text import encoding_of
from ..net.client import Answer
from ..optional import need

MAX_PDF_PAGES = 500
# Of a page's own text, before a part of it is chosen.
MAX_TEXT = 4_000_000
_HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True, slots=True)
class Readable:
    """`text`, or a medium where the answer is none."""

    title: str = ""
    text: str = ""
    file: File | None = None


def readable(answer: Answer, given_up: Callable[[], bool] = lambda: False) -> Readable:
    """By the answer's type, corrected by what its first bytes say. Raises ToolError where it cannot be read."""
    mime = sniffed_mime(answer.body[:16]) or answer.mime
    if mime == "application/pdf":
        return Readable(*pdf_text(answer.body, given_up=given_up))
    if mime.startswith("image/") and mime != "image/svg+xml":
        return Readable(file=Image.from_bytes(answer.body, mime, file_name(answer.url)))
    looks_textual = mime.startswith("text/") or mime.endswith(("json", "xml", "javascript", "yaml")) or not mime
    encoding = encoding_of(answer.body) if looks_textual or mime == "application/octet-stream" else None
    if encoding is None:
        return Readable(file=File.from_bytes(answer.body, mime, file_name(answer.url)))
    text = _decoded(answer, encoding)
    if mime in _HTML or (not mime and text.lstrip()[:15].lower().startswith(("<!doctype html", "<html"))):
        return _article(text, answer.url)
    if mime.endswith("json"):
        return Readable(text=_indented(text))
    return Readable(text=text[:MAX_TEXT])


def pdf_text(data: bytes, *, given_up: Callable[[], bool] = lambda: False) -> tuple[str, str]:
    """Title and text of a PDF, a mark between its pages. Raises ToolError."""
    pages = pdf_pages(data, given_up)
    text = "\n\n".join(f"[page {number}]\n{page}" for number, page in enumerate(pages[1], 1))
    return pages[0], text[:MAX_TEXT]


def pdf_pages(data: bytes, given_up: Callable[[], bool] = lambda: False) -> tuple[str, list[str]]:
    """Title and the text of each page. Raises ToolError where the PDF is damaged or locked."""
    pypdf = need("pypdf", "tools", "reading a PDF")
    pages: list[str] = []
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise ToolError("the PDF is locked by a password")
        title = str((reader.metadata or {}).get("/Title", "") or "")
        size = 0
        for page in reader.pages:
            if len(pages) == MAX_PDF_PAGES or size > MAX_TEXT or given_up():
                break
            pages.append(page.extract_text().strip())
            size += len(pages[-1])
    except ToolError:
        raise
    # pypdf raises whatever a damaged file runs it into: KeyError, TypeError, RecursionError.
    except Exception as error:
        raise ToolError(f"the PDF cannot be read: {type(error).__name__}: {error}") from error
    if not any(pages):
        raise ToolError("the PDF holds no text", hint="its pages are pictures: recognition of characters can read them")
    return title, pages


def file_name(url: str) -> str:
    return os.path.basename(unquote(urlsplit(url).path)) or "download"


def _decoded(answer: Answer, encoding: str) -> str:
    if encoding in ("utf-16", "utf-8-sig"):
        return answer.body.decode(encoding, "replace")
    declared = answer.charset
    if not declared and answer.mime in _HTML:
        # What the page says of itself; trafilatura's own detection is for pages without.
        head = answer.body[:2048].lower()
        _, found, after = head.partition(b"charset=")
        declared = after.lstrip(b"\"'").split(b'"')[0].split(b"'")[0].split(b";")[0].strip().decode("ascii", "ignore")
        declared = declared if found else ""
    try:
        return answer.body.decode(declared or encoding, "replace")
    except (LookupError, UnicodeError):
        return answer.body.decode(encoding, "replace")


def _article(html: str, url: str) -> Readable:
    trafilatura = need("trafilatura", "tools", "reading a web page")
    tree = trafilatura.load_html(html)
    if tree is None:
        return Readable(text=html[:MAX_TEXT])
    title = " ".join("".join(tree.xpath("string(//title[1])")).split())
    found = trafilatura.extract(
        html, url=url, output_format="markdown", include_links=True, include_tables=True, include_comments=False
    )
    # A page without an article (a form, an index): all its words.
    text = found or trafilatura.html2txt(html) or ""
    return Readable(title, text[:MAX_TEXT])


def _indented(text: str) -> str:
    try:
        return json.dumps(json.loads(text), ensure_ascii=False, indent=1)[:MAX_TEXT]
    except (ValueError, RecursionError):
        return text[:MAX_TEXT]
