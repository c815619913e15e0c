"""Folders of the cache: made once, kept while somebody uses them, removed when nobody has for long."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import anyio.lowlevel
import msgspec
import pytest

from callboard.actors.tools.deploy.errors import ArtifactDamaged
from callboard.actors.tools.deploy.made_once import Kept, keep, prune
from callboard.actors.tools.deploy.shelf import KeptSet, KeptVersion, Shelf

pytestmark = pytest.mark.anyio


def folders(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir() if path.is_dir())


async def use(folder: Path, made: list[str] | None = None, *, fails: bool = False) -> Kept:
    async def make() -> None:
        os.mkdir(folder)
        if made is not None:
            made.append("began")
        await anyio.lowlevel.checkpoint()
        if fails:
            shutil.rmtree(folder)
            raise ArtifactDamaged("no")
        (folder / "whole").touch()

    return await keep(folder, (folder / "whole").exists, make)


async def test_many_at_once_have_it_made_by_one(tmp_path: Path) -> None:
    made: list[str] = []
    kept: list[Kept] = []

    async def one() -> None:
        kept.append(await use(tmp_path / "x", made))

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(one)
    assert (len(kept), made) == (8, ["began"])
    for each in kept:
        each.release()
        each.release()


async def test_a_failure_leaves_it_to_the_next(tmp_path: Path) -> None:
    with pytest.raises(ArtifactDamaged):
        await use(tmp_path / "x", fails=True)
    made: list[str] = []
    (await use(tmp_path / "x", made)).release()
    assert made == ["began"]


async def test_only_what_nobody_uses_or_has_used_for_long_is_removed(tmp_path: Path) -> None:
    in_use, old, fresh = [await use(tmp_path / name) for name in ("in-use", "old", "fresh")]
    old.release()
    fresh.release()
    long_ago = time.time() - 100
    for name in ("in-use", "old"):
        os.utime(tmp_path / f"{name}.lock", (long_ago, long_ago))
    assert prune(tmp_path, shutil.rmtree, 50) == [tmp_path / "old"]
    assert folders(tmp_path) == ["fresh", "in-use"]
    in_use.release()
    assert prune(tmp_path, shutil.rmtree, 50) == [tmp_path / "in-use"]


# The shelf


DIGEST, OTHER = "a" * 64, "b" * 64


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def a_set(name: str, digest: str) -> dict[str, KeptSet]:
    return {name: KeptSet(name, "1", (KeptVersion("1", digest, "s", "s"),))}


async def test_what_does_not_pass_its_check_never_lies_on_the_shelf(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    good = b"good" * 100
    await shelf.put(DIGEST, b"{}", pieces(good[:5], good[5:]), lambda view: None)

    def refuse(view: memoryview) -> None:
        assert bytes(view) == b"bad"
        raise ArtifactDamaged("no")

    with pytest.raises(ArtifactDamaged):
        await shelf.put(DIGEST, b"{}", pieces(b"bad"), refuse)
    assert shelf.content(DIGEST).read_bytes() == good
    assert sorted(path.suffix for path in (tmp_path / "artifacts").iterdir()) == [".json", ".tar"]


async def test_artifacts_go_when_no_set_needs_them_and_none_is_on_its_way(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    for digest in (DIGEST, OTHER):
        await shelf.put(digest, b"{}", pieces(b"x"), lambda view: None)
    shelf.write_sets(a_set("kit", DIGEST), {OTHER})
    assert len(list((tmp_path / "artifacts").iterdir())) == 4
    shelf.write_sets(a_set("kit", DIGEST), set())
    assert {path.stem for path in (tmp_path / "artifacts").iterdir()} == {DIGEST}
    assert Shelf(tmp_path).sets() == a_set("kit", DIGEST)
    assert shelf.manifest(DIGEST) == "{}"
    with pytest.raises(ArtifactDamaged, match="not on the shelf"):
        shelf.manifest(OTHER)
    with pytest.raises(ArtifactDamaged, match="is no digest"):
        shelf.content("../../etc/passwd")


@pytest.mark.parametrize("text", ["", "[", '{"name": 5}', "\x00"])
def test_a_damaged_list_is_left_aside_and_not_lost(tmp_path: Path, text: str) -> None:
    (tmp_path / "deployments.json").write_text(text)
    shelf = Shelf(tmp_path)
    assert shelf.sets() == {}
    assert (tmp_path / "deployments.damaged").read_text() == text
    shelf.write_sets(a_set("kit", DIGEST), set())
    assert msgspec.json.decode((tmp_path / "deployments.json").read_bytes())[0]["name"] == "kit"
