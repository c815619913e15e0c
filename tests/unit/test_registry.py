"""Entry points: what is announced is found, kept, noticed when it changes, and loaded only when it is used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import callboard
from callboard.runtime.errors import MissingExtra, UnknownKind
from callboard.runtime.extras import missing_extra
from callboard.runtime.kinds import known_kinds, resolve_kind
from callboard.runtime.registry import ACTORS, COMMANDS, TOOLS, Registry

Install = Callable[[str, str, str], Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on the search path: its name, its module's source, its entry points."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def put(name: str, source: str, entry_points: str) -> Path:
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entry_points)
        module = site / f"{name}.py"
        module.write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return module

    return put


ACTOR = "from callboard import Actor\nclass Player(Actor): pass\nsomething = 3\n"


def test_what_a_package_announces_is_found_in_its_group(tmp_path: Path, install: Install) -> None:
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n[callboard.tools]\nsaw = troupe:saw\n")
    found = Registry(tmp_path / "cache")
    assert found.entries(ACTORS)["player"].value == "troupe:Player"
    assert found.entries(ACTORS)["player"].package == "troupe"
    assert found.entries(TOOLS)["saw"].value == "troupe:saw"
    assert "up" in found.entries(COMMANDS)
    assert "troupe" not in sys.modules


def test_the_second_look_reads_no_metadata(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n")
    first = Registry(tmp_path / "cache").entries(ACTORS)
    monkeypatch.setattr("importlib.metadata.distributions", None)
    assert Registry(tmp_path / "cache").entries(ACTORS) == first


def test_a_package_that_comes_later_is_noticed(tmp_path: Path, install: Install) -> None:
    assert "player" not in Registry(tmp_path / "cache").entries(ACTORS)
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n")
    assert "player" in Registry(tmp_path / "cache").entries(ACTORS)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"key": 3}'])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, install: Install, content: bytes) -> None:
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n")
    Registry(tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(content)
    assert "player" in Registry(tmp_path / "cache").entries(ACTORS)


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, install: Install) -> None:
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n")
    (tmp_path / "file").write_text("")
    assert "player" in Registry(tmp_path / "file" / "cache").entries(ACTORS)


def test_ours_wins_over_a_package_that_takes_our_name(tmp_path: Path, install: Install) -> None:
    install("thief", ACTOR, "[callboard.commands]\nup = thief:up\n")
    assert Registry(tmp_path / "cache").entries(COMMANDS)["up"].package == "callboard"


COMMAND = """
from callboard.runtime.command import Command
go = Command("{summary}", lambda parser: None, lambda args: 0)
"""


def test_summaries_are_kept_until_the_file_changes(tmp_path: Path, install: Install) -> None:
    module = install("stage", COMMAND.format(summary="first"), "[callboard.commands]\ngo = stage:go\n")
    assert Registry(tmp_path / "cache").summaries()["go"] == "first"
    del sys.modules["stage"]
    assert Registry(tmp_path / "cache").summaries()["go"] == "first"
    assert "stage" not in sys.modules
    module.write_text(COMMAND.format(summary="second, longer"))
    assert Registry(tmp_path / "cache").summaries()["go"] == "second, longer"


def test_a_command_that_cannot_be_loaded_does_not_spoil_the_list(tmp_path: Path, install: Install) -> None:
    install("stage", "raise RuntimeError('broken')", "[callboard.commands]\ngo = stage:go\n")
    summaries = Registry(tmp_path / "cache").summaries()
    assert "broken" in summaries["go"]
    assert summaries["up"]


def test_a_kind_is_resolved_by_its_name(install: Install) -> None:
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n")
    assert issubclass(resolve_kind("player"), callboard.Actor)
    assert "player" in known_kinds()


def test_an_unknown_kind_names_the_nearest_one(install: Install) -> None:
    install("troupe", ACTOR, "[callboard.actors]\nplayer = troupe:Player\n")
    with pytest.raises(UnknownKind, match="'plaier'") as caught:
        resolve_kind("plaier")
    assert "'player'" in caught.value.hint


def test_a_module_must_have_been_allowed(install: Install) -> None:
    install("troupe", ACTOR, "")
    with pytest.raises(UnknownKind, match="troupe"):
        resolve_kind("troupe:Player")
    assert "troupe" not in sys.modules
    assert resolve_kind("troupe:Player", ("troupe",)).__name__ == "Player"


@pytest.mark.parametrize(("name", "words"), [("Plaier", "no 'Plaier'"), ("something", "no actor class")])
def test_what_is_no_actor_is_refused(install: Install, name: str, words: str) -> None:
    install("troupe", ACTOR, "")
    with pytest.raises(UnknownKind, match=words):
        resolve_kind(f"troupe:{name}", ("troupe",))


def test_a_kind_whose_extra_is_missing_names_the_extra(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("troupe", "import textual\n", "[callboard.actors]\nplayer = troupe:Player\n")
    monkeypatch.setitem(sys.modules, "textual", None)
    with pytest.raises(MissingExtra, match="'tui'") as caught:
        resolve_kind("player")
    assert "callboard[tui]" in caught.value.hint


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "serve"), ("transformers.models", "serve"), ("triton", "gpu"), ("peft", "train"), ("ray", "cluster")],
)
def test_modules_lead_to_their_extra(module: str, extra: str) -> None:
    found = missing_extra(ModuleNotFoundError(name=module), "it")
    assert found is not None
    assert f"callboard[{extra}]" in found.hint


def test_a_module_that_no_extra_brings_leads_nowhere() -> None:
    assert missing_extra(ModuleNotFoundError(name="no_such_module"), "it") is None
    assert missing_extra(ImportError("no name"), "it") is None
