"""Files within roots: what is found and read, and every way out of them refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.tools.errors import ToolArguments, ToolError
from callboard.actors.tools.included.files import beneath
from callboard.actors.tools.included.files.beneath import FileRefused, open_beneath
from callboard.actors.tools.included.files.roots import Roots
from callboard.actors.tools.included.files.tools import FilesOptions, tools
from callboard.actors.tools.included.files.walking import Deadline, glob_matcher
from callboard.actors.tools.outcome import Outcome
from callboard.runtime.errors import ConfigError

PNG = b"\x89PNG\r\n\x1a\n" + bytes(24)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "src" / "deep").mkdir(parents=True)
    (root / "notes.md").write_text("one\ntwo\nthree\nfour\n")
    (root / "src" / "main.py").write_text("import os\n\ndef main() -> None:\n    print('Grüße')\n", encoding="utf-8")
    (root / "src" / "deep" / "old.py").write_bytes("x = 'é'\n".encode("latin-1"))
    (root / ".hidden").write_text("two secrets\n")
    (root / "picture").write_bytes(PNG)
    (root / "data.bin").write_bytes(bytes(range(256)))
    (tmp_path / "outside.txt").write_text("secret two\n")
    return root


def _call(name: str, root: Path, /, **arguments: Any) -> Outcome:
    async def main() -> Outcome:
        tool = next(tool for tool in tools(FilesOptions({"root": str(root)})) if tool.info.name == name)
        try:
            return await tool.call(arguments)
        finally:
            if tool.once.is_ready:
                tool.close()

    return anyio.run(main)


def test_a_file_is_read_whole_or_by_lines(folder: Path) -> None:
    assert _call("read", folder, path="notes.md").text == "one\ntwo\nthree\nfour"
    part = _call("read", folder, path="root/notes.md", first_line=2, num_lines=2)
    assert part.data["text"] == "two\nthree"
    assert (part.data["first_line"], part.data["last_line"], part.data["num_lines"], part.data["more"]) == (
        2,
        3,
        4,
        True,
    )
    assert part.text.endswith("[lines 2 to 3 of 4]")
    assert _call("read", folder, path=str(folder / "src" / "deep" / "old.py")).text == "x = 'é'"


def test_a_long_line_is_cut_and_says_so(folder: Path) -> None:
    (folder / "long").write_text("x" * 5000)
    found = _call("read", folder, path="long", max_chars=100).data
    assert found["text"] == "x" * 100 + "… (the line goes on)"


def test_what_is_no_text_is_given_as_a_medium(folder: Path) -> None:
    picture = _call("read", folder, path="root/picture")
    (file,) = picture.media.values()
    assert (file.mime, file.bytes()) == ("image/png", PNG)
    assert picture.data["image"] is file
    assert picture.text == "root/picture: [image picture, image/png, 32 bytes]"
    (binary,) = _call("read", folder, path="data.bin").media.values()
    assert binary.bytes() == bytes(range(256))


def test_search_finds_names_and_lines(folder: Path) -> None:
    assert _call("search", folder, glob="*.py").text.splitlines() == ["root/src/deep/old.py", "root/src/main.py"]
    assert _call("search", folder, glob="src/*.py").text == "root/src/main.py"
    assert _call("search", folder, glob="**/deep/*.{py,md}").text == "root/src/deep/old.py"
    assert _call("search", folder, pattern="two").text == "root/notes.md:2: two"
    hidden = _call("search", folder, pattern="TWO", ignore_case=True, hidden=True).data
    assert [match["path"] for match in hidden["matches"]] == ["root/.hidden", "root/notes.md"]
    assert hidden["skipped"] == 2  # the picture and the binary file
    assert _call("search", folder, pattern="Grü.e", folder="src").text == "root/src/main.py:4:     print('Grüße')"
    limited = _call("search", folder, glob="*", limit=2).data
    assert len(limited["matches"]) == 2
    assert not limited["complete"]


def test_list_shows_kinds_and_sizes(folder: Path) -> None:
    found = _call("list", folder).data
    assert {entry["path"]: entry["kind"] for entry in found["entries"]} == {
        "root/.hidden": "file",
        "root/data.bin": "file",
        "root/notes.md": "file",
        "root/picture": "file",
        "root/src": "folder",
    }
    assert any(entry["path"] == "root/src/deep/old.py" for entry in _call("list", folder, depth=3).data["entries"])


@pytest.mark.parametrize(
    "path",
    [
        "../outside.txt",
        "src/../../outside.txt",
        "root/../outside.txt",
        "root/root/../../outside.txt",
        "/etc/passwd",
        "//etc/passwd",
        "/proc/self/environ",
        "link",
        "absolute-link",
        "folder-link/outside.txt",
        "chain",
        "loop",
        "magic/root/etc/passwd",
        "src/../link",
        "",
        ".",
        "src",
        "fifo",
        "no-such-file",
        "notes.md/x",
        "nul\0l",
        "a" * 5000,
        "~/.ssh/id_rsa",
    ],
)
def test_nothing_outside_and_nothing_but_files_is_read(folder: Path, path: str) -> None:
    (folder / "link").symlink_to("../outside.txt")
    (folder / "absolute-link").symlink_to(folder.parent / "outside.txt")
    (folder / "folder-link").symlink_to("..")
    (folder / "chain").symlink_to("src/chain")
    (folder / "src" / "chain").symlink_to("../../outside.txt")
    (folder / "loop").symlink_to("loop")
    (folder / "magic").symlink_to("/proc/self")
    os.mkfifo(folder / "fifo")
    before = time.perf_counter()
    with pytest.raises(ToolError):
        _call("read", folder, path=path)
    with pytest.raises(FileRefused):
        _walked(folder, path)
    assert time.perf_counter() - before < 5.0


def _walked(folder: Path, path: str) -> int:
    """The same by the way that has no openat2."""
    roots = Roots({"root": str(folder)})
    beneath.has_openat2.cache_clear()
    real, beneath.has_openat2 = beneath.has_openat2, lambda: False  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return roots.open(path)
    finally:
        beneath.has_openat2 = real
        roots.close()


def test_both_ways_read_what_is_inside(folder: Path) -> None:
    (folder / "inner").symlink_to("notes.md")
    os.close(_walked(folder, "src/./main.py"))
    if beneath.has_openat2():
        assert _call("read", folder, path="inner").text.startswith("one")
    with pytest.raises(FileRefused):
        _walked(folder, "inner")


def test_search_and_list_do_not_follow_links(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "secret").symlink_to("../outside.txt")
    assert "secret" not in _call("search", folder, pattern="secret").text
    assert "up" not in _call("list", folder, depth=5).text


SWAPPER = """
import os, sys
os.chdir(sys.argv[1])
print("ready", flush=True)
while True:
    os.rename("swap", "aside")
    os.symlink("..", "swap")
    os.unlink("swap")
    os.rename("aside", "swap")
"""


def test_a_folder_that_is_swapped_for_a_link_does_not_lead_out(folder: Path) -> None:
    """A race that goes on all the while: `swap` is a folder with a harmless file, then a link to what is outside."""
    (folder / "swap").mkdir()
    (folder / "swap" / "outside.txt").write_text("harmless")
    roots = Roots({"root": str(folder)})
    seen: set[bytes] = set()
    refused = 0
    with subprocess.Popen([sys.executable, "-c", SWAPPER, str(folder)], stdout=subprocess.PIPE) as swapper:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        end = time.monotonic() + 30.0
        tries = 0
        while (tries < 3000 or not seen or not refused) and time.monotonic() < end:
            tries += 1
            try:
                descriptor = roots.open("swap/outside.txt")
            except FileRefused:
                refused += 1
                continue
            with os.fdopen(descriptor, "rb") as file:
                seen.add(file.read())
        swapper.kill()
    roots.close()
    assert seen == {b"harmless"}
    assert refused


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$", "(.*a){25}$", "^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_an_evil_expression_runs_out_of_time(folder: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("callboard.actors.tools.included.files.tools.SECONDS", 0.5)
    (folder / "evil.txt").write_text("a" * 40_000 + "!" + "a" * 40_000 + "!")
    before = time.perf_counter()
    with pytest.raises(ToolError, match="takes too long"):
        _call("search", folder, pattern=pattern)
    assert time.perf_counter() - before < 5.0


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "a{2,1}", "(?P<x>a)(?P<x"])
def test_what_is_no_expression_is_said(folder: Path, pattern: str) -> None:
    with pytest.raises(ToolError, match="no regular expression"):
        _call("search", folder, pattern=pattern)


def test_a_glob_of_many_stars_ends() -> None:
    before = time.perf_counter()
    for glob, path in (("*[ab]" * 30 + "c", "ab" * 100 + "cd"), ("**/" * 40 + "x", "a/" * 200 + "y")):
        try:
            assert not glob_matcher(glob, Deadline(1.0))(path)
        except ToolError as error:
            assert "takes too long" in str(error)  # noqa: PT017
    assert time.perf_counter() - before < 5.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab.[]{}*?!\\", min_size=1, max_size=6), min_size=1, max_size=4))
def test_a_name_without_wildcards_matches_itself_alone(parts: list[str]) -> None:
    path = "/".join(part.translate(str.maketrans("", "", "*?[]{}")) or "x" for part in parts)
    matches = glob_matcher(path if "/" in path else f"./{path}"[2:], Deadline(5.0))
    assert matches(path)
    assert not matches(path + "x")


def test_a_walk_ends_when_nobody_waits(folder: Path) -> None:
    from callboard.actors.tools.included.files.search import search

    roots = Roots({"root": str(folder)})
    found = search(
        roots, "", "**", "", ignore_case=False, hidden=False, limit=100, deadline=Deadline(60.0, lambda: True)
    )
    roots.close()
    assert found.matches == []
    assert not found.complete


def test_several_roots_go_by_name(folder: Path, tmp_path: Path) -> None:
    roots = Roots({"a": str(folder), "b": str(folder / "src")})
    os.close(roots.open("b/main.py"))
    with pytest.raises(FileRefused, match="begins with no folder"):
        roots.open("main.py")
    roots.close()
    with pytest.raises(ConfigError, match="cannot be opened"):
        Roots({"a": str(tmp_path / "missing")})
    with pytest.raises(ConfigError, match="no folder may be read"):
        Roots({})


def test_a_descriptor_is_of_a_regular_file(folder: Path) -> None:
    root = os.open(folder, os.O_RDONLY)
    try:
        with pytest.raises(FileRefused, match="no regular file"):
            open_beneath(root, "src")
        with pytest.raises(FileRefused):
            open_beneath(root, "notes.md", directory=True)
    finally:
        os.close(root)


def test_arguments_are_checked(folder: Path) -> None:
    with pytest.raises(ToolArguments, match="first_line"):
        _call("read", folder, path="notes.md", first_line=0)
    with pytest.raises(ToolError, match="has 4 lines"):
        _call("read", folder, path="notes.md", first_line=9)
