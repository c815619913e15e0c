"""Fetching against a hostile web, over real sockets."""

from __future__ import annotations

import gzip
import ipaddress
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from pdf_files import pdf
from web_calls import called
from web_server import Handler, WebServer, serving

from callboard.actors.tools.errors import ToolError
from callboard.actors.tools.included.net.addresses import networks, why_refused
from callboard.actors.tools.included.net.client import Answer, Bounds, Client
from callboard.actors.tools.included.net.errors import FetchFailed, FetchRefused
from callboard.actors.tools.included.web.tools import WebOptions, web
from callboard.actors.tools.outcome import Outcome
from callboard.runtime.errors import ConfigError

LOCAL = networks(["127.0.0.0/8"])


@pytest.fixture
def site() -> Iterator[WebServer]:
    with serving() as server:
        yield server


def fetched(url: str, *, allow: str = "127.0.0.0/8", seconds: float = 10.0, **more: Any) -> Answer:
    async def main() -> Answer:
        client = Client(
            networks([allow]) if allow else (), Bounds(seconds, 1 << 20), resolver=more.pop("resolver", None)
        )
        try:
            return await client.request(more.pop("method", "GET"), url, **more)
        finally:
            await client.aclose()

    return anyio.run(main)


def fetch(url: str, options: WebOptions | None = None, **arguments: Any) -> Outcome:
    return called(web(options or WebOptions(allow=("127.0.0.0/8",))), "fetch", url=url, **arguments)


# Which addresses.


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.127.255.255", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
        *("255.255.255.255", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.9", "192.88.99.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "fec0::1", "100::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2002:a00:1::1"),
        *("2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "3fff::1", "5f00::1", "4000::1"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    assert why_refused(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "1.1.1.1",
        "100.63.255.255",
        "172.32.0.1",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses_are_not(address: str) -> None:
    assert not why_refused(ipaddress.ip_address(address))


def test_an_exception_is_for_its_network_alone() -> None:
    assert not why_refused(ipaddress.ip_address("127.0.0.1"), LOCAL)
    assert not why_refused(ipaddress.ip_address("::ffff:127.0.0.1"), LOCAL)
    assert why_refused(ipaddress.ip_address("::1"), LOCAL)
    assert why_refused(ipaddress.ip_address("10.0.0.1"), LOCAL)
    with pytest.raises(ConfigError, match="no network"):
        networks(["127.0.0.1/8"])


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "127.1", "0x7f000001", "2130706433"),
        *("0177.0.0.1", "017700000001", "0x7f.0.0.1", "127.0.0.1.", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]"),
    ],
)
def test_no_spelling_of_this_machine_is_fetched(site: WebServer, host: str) -> None:
    site.page("/", "secret")
    with pytest.raises(FetchFailed):
        fetched(f"http://{host}:{site.port}/", allow="")
    assert site.seen == []


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://example.com/", "gopher://127.0.0.1:25/_x", "http://", "https:///x", "//x", "x"),
        *("http://user:key@example.com/", "http://example.com@127.0.0.1/", "http://example.com:99999/", "http://[::1/"),
        *(
            "http://exa mple.com/",
            "http://127.0.0.1\\@example.com/",
            "http://example.com/\r\nHost: x",
            "data:text/html,x",
        ),
        *("javascript:alert(1)", "http://" + "a" * 9000, "http://exam\0ple.com/", ""),
    ],
)
def test_what_is_no_plain_web_address_is_refused(url: str) -> None:
    with pytest.raises(FetchRefused):
        fetched(url, allow="0.0.0.0/0")


@pytest.mark.parametrize("port", [22, 25, 53, 110, 143, 445, 993])
def test_ports_of_other_services_are_refused(port: int) -> None:
    with pytest.raises(FetchRefused, match="no web server"):
        fetched(f"http://127.0.0.1:{port}/")


# Redirects and names that change.


def test_each_redirect_is_checked(site: WebServer) -> None:
    """The first address is excepted by the options, the second is another one of this machine."""
    site.page("/secret", "secret")
    site.redirect("/go", f"http://[::ffff:127.0.0.1]:{site.port}/secret")
    assert fetched(f"{site.url}/go").body == b"secret"
    for target in (
        f"http://127.0.0.2:{site.port}/secret",
        f"http://localhost:{site.port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        f"http://[::1]:{site.port}/secret",
        "file:///etc/passwd",
        f"http://u:p@127.0.0.1:{site.port}/secret",
    ):
        site.redirect("/go", target)
        before = len(site.seen)

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.9"] if host == "localhost" else [host]

        with pytest.raises(FetchRefused):
            fetched(f"{site.url}/go", allow="127.0.0.1/32", resolver=resolver)
        assert len(site.seen) == before + 1


def test_redirects_end(site: WebServer) -> None:
    site.redirect("/round", "/round")
    with pytest.raises(FetchFailed, match="redirects"):
        fetched(f"{site.url}/round")
    assert len(site.seen) == 9


def test_a_name_that_changes_its_address_is_asked_once(site: WebServer) -> None:
    """DNS rebinding: the first answer is public, the second is this machine."""
    site.page("/", "secret")
    answers = iter([["192.0.2.1"], ["127.0.0.1"]])
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> list[str]:
        asked.append(host)
        return next(answers)

    with pytest.raises(FetchRefused):
        fetched(f"http://rebind.example:{site.port}/", allow="", resolver=rebinding)
    assert asked == ["rebind.example"]
    with pytest.raises(FetchRefused):
        fetched(f"http://rebind.example:{site.port}/", allow="", resolver=rebinding)
    assert site.seen == []


def test_the_connection_goes_to_the_address_that_was_checked(site: WebServer) -> None:
    """The name means nothing to this machine's resolver: only what was resolved and checked is connected to."""
    site.page("/", "hello")

    async def resolver(host: str, port: int) -> list[str]:
        return ["10.0.0.1", "127.0.0.1"]

    assert fetched(f"http://nowhere.invalid:{site.port}/", resolver=resolver).body == b"hello"
    assert site.seen[0].headers["host"] == f"nowhere.invalid:{site.port}"


def test_credentials_stay_with_their_origin(site: WebServer) -> None:
    with serving() as other:
        site.redirect("/go", other.page("/end", "end"))
        site.redirect("/near", "/there")
        site.page("/there", "there", headers={"set-cookie": "a=b"})
        headers = {"Authorization": "Bearer key", "x-other": "1"}
        fetched(f"{site.url}/go", headers=headers)
        assert "authorization" in site.seen[0].headers
        assert "authorization" not in other.seen[0].headers
        assert other.seen[0].headers["x-other"] == "1"
        fetched(f"{site.url}/near", headers=headers)
        assert site.seen[-1].headers["authorization"] == "Bearer key"


def test_proxies_of_the_environment_are_not_used(site: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.page("/", "direct")
    assert fetched(f"{site.url}/").body == b"direct"


# Bodies.


def _endless(piece: bytes, pause: float = 0.0, headers: dict[str, str] | None = None) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("content-type", "text/plain")
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        handler.end_headers()
        while not handler.site.over.wait(pause):
            handler.wfile.write(piece)

    return answer


def test_an_endless_body_is_cut_off(site: WebServer) -> None:
    site.pages["/"] = _endless(b"x" * 65536)
    with pytest.raises(FetchFailed, match="at most 1,048,576"):
        fetched(f"{site.url}/")


def test_a_large_body_is_not_even_begun(site: WebServer) -> None:
    site.pages["/"] = _endless(b"x", 0.01, {"content-length": str(1 << 40)})
    with pytest.raises(FetchFailed, match="1,099,511,627,776"):
        fetched(f"{site.url}/")


@pytest.mark.parametrize("piece", [b"x", b""])
def test_a_slow_body_ends_at_the_time_limit(site: WebServer, piece: bytes) -> None:
    site.pages["/"] = _endless(piece, 0.05)
    before = time.perf_counter()
    with pytest.raises(FetchFailed, match=r"longer than 0\.5 s"):
        fetched(f"{site.url}/", seconds=0.5)
    assert time.perf_counter() - before < 3.0


def _silent(handler: Handler) -> None:
    handler.site.over.wait(20.0)
    handler.close_connection = True


def test_a_server_that_never_answers_ends_at_the_time_limit(site: WebServer) -> None:
    site.pages["/"] = _silent
    with pytest.raises(FetchFailed):
        fetched(f"{site.url}/", seconds=0.5)


def _bomb(layers: int) -> bytes:
    data = bytes(64 << 20)
    for _ in range(layers):
        data = gzip.compress(data, 9)
    return data


@pytest.mark.parametrize(("encoding", "layers"), [("gzip", 1), ("gzip, gzip", 2)])
def test_a_compressed_bomb_is_cut_off(site: WebServer, encoding: str, layers: int) -> None:
    body = _bomb(layers)
    assert len(body) < 1 << 20
    site.page("/", body, headers={"content-encoding": encoding})
    before = time.perf_counter()
    with pytest.raises(FetchFailed, match="more than 1,048,576"):
        fetched(f"{site.url}/")
    assert time.perf_counter() - before < 5.0


def test_other_compressions(site: WebServer) -> None:
    assert fetched(site.page("/gz", gzip.compress(b"text"), headers={"content-encoding": "gzip"})).body == b"text"
    assert fetched(site.page("/z", zlib.compress(b"text"), headers={"content-encoding": "deflate"})).body == b"text"
    with pytest.raises(FetchFailed, match="damaged"):
        fetched(site.page("/bad", b"no gzip at all", headers={"content-encoding": "gzip"}))
    with pytest.raises(FetchFailed, match="many times"):
        fetched(site.page("/many", b"x", headers={"content-encoding": ", ".join(["gzip"] * 20)}))


def _raw(data: bytes) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.close_connection = True
        handler.wfile.write(data)

    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 999999 OK\r\n\r\n",
    ],
)
def test_answers_that_are_no_http_are_errors(site: WebServer, data: bytes) -> None:
    site.pages["/"] = _raw(data)
    with pytest.raises(FetchFailed):
        fetched(f"{site.url}/")


# What a page is for a model.

ARTICLE = """<!DOCTYPE html><html><head><title>The  title</title></head><body><nav><a href="/x">Menu</a></nav>
<article><h1>Heading</h1><p>The first paragraph says a good deal about <a href="/more">one thing</a>, so that it is
an article, and goes on for a while to be long enough for that.</p><table><tr><th>a</th><th>b</th></tr>
<tr><td>1</td><td>2</td></tr></table><p>A second paragraph, about Grüße, which is also not too short to be kept.</p>
</article><script>alert('no')</script></body></html>"""


def test_a_page_is_read_as_markdown(site: WebServer) -> None:
    outcome = fetch(site.page("/a", ARTICLE))
    assert outcome.data["title"] == "The title"
    assert "first paragraph" in outcome.text
    assert "Grüße" in outcome.text
    assert "| 1 | 2 |" in outcome.text
    assert "alert" not in outcome.text
    assert fetch(
        site.page("/b", ARTICLE.replace("Grüße", "Gr\xfc\xdfe").encode("latin-1"), "text/html; charset=latin-1")
    )
    form = fetch(site.page("/form", "<html><body><form><label>Name</label><input></form></body></html>"))
    assert "Name" in form.text


def test_the_charset_is_that_of_the_header_or_the_page(site: WebServer) -> None:
    page = ARTICLE.replace("<head>", '<head><meta charset="iso-8859-15">').replace("Grüße", "Grüße für 5 €")
    assert "für 5 €" in fetch(site.page("/m", page.encode("iso-8859-15"), "text/html")).text
    assert "für 5 €" in fetch(site.page("/h", page.encode("utf-16"), "text/html; charset=utf-16")).text
    odd = fetch(site.page("/x", ARTICLE, "text/html; charset=no-such-charset"))
    assert "Grüße" in odd.text


def test_a_long_text_comes_in_parts(site: WebServer) -> None:
    url = site.page("/long", "0123456789" * 100, "text/plain")
    first = fetch(url, max_chars=250)
    assert first.text.endswith("[characters 0 to 250 of 1000; go on with start]")
    assert fetch(url, start=900, max_chars=250).text == "0123456789" * 10
    assert "only 1000" in fetch(url, start=5000).text


def test_json_is_indented_and_pictures_are_pictures(site: WebServer) -> None:
    assert fetch(site.page("/j", '{"a":[1,"ü"]}', "application/json")).text == '{\n "a": [\n  1,\n  "ü"\n ]\n}'
    assert fetch(site.page("/bad", "{", "application/json")).text == "{"
    png = b"\x89PNG\r\n\x1a\n" + bytes(20)
    outcome = fetch(site.page("/p/pic.png?x=1".partition("?")[0], png, "text/html"))
    (image,) = outcome.media.values()
    assert (image.kind.value, image.mime, image.name, image.bytes()) == ("image", "image/png", "pic.png", png)
    (other,) = fetch(site.page("/z.zip", b"PK\x03\x04" + bytes(9), "application/zip")).media.values()
    assert (other.kind.value, other.mime) == ("file", "application/zip")
    # A type that lies: bytes that are no text are no page.
    (binary,) = fetch(site.page("/lie", bytes(range(256)), "text/html")).media.values()
    assert binary.kind.value == "file"


def test_a_pdf_is_read_page_by_page(site: WebServer) -> None:
    data = pdf("The first page", "Another page")
    outcome = fetch(site.page("/paper", data, "application/octet-stream"))
    assert "[page 1]\nThe first page" in outcome.text
    assert "[page 2]\nAnother page" in outcome.text
    for damaged in (b"%PDF-1.7\n" + bytes(3000), b"%PDF-", data[: len(data) // 8]):
        with pytest.raises(ToolError, match="PDF"):
            fetch(site.page("/damaged", damaged, "application/pdf"))
    # A table of places that is wrong is mended.
    mended = data.replace(b"0000000009 00000 n", b"0000000777 00000 n")
    assert mended != data
    assert "first page" in fetch(site.page("/mendable", mended, "application/pdf")).text


def test_an_error_status_is_an_error_with_a_hint(site: WebServer) -> None:
    with pytest.raises(FetchFailed, match="status 404") as caught:
        fetch(f"{site.url}/none")
    assert "wrong" in caught.value.hint
    with pytest.raises(FetchFailed, match="status 503"):
        fetch(site.page("/busy", "x", status=503))


def test_without_exceptions_this_machine_is_not_fetched(site: WebServer) -> None:
    site.page("/", "secret")
    with pytest.raises(FetchRefused, match="loopback"):
        fetch(f"{site.url}/", WebOptions())
    assert site.seen == []
