"""What is deployed, on the disk: artifacts under their digests, and one file that says which sets there are.

Each file is written whole or not at all, so a process that was killed leaves either the old state or the new one.
Blocking: use it in a thread.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import secrets
from collections.abc import AsyncIterable, Callable
from pathlib import Path

import msgspec
from anyio.to_thread import run_sync

from ....runtime.files import private_folder, write_private
from ....runtime.log import log
from ....runtime.messages import UNDECODABLE
from .errors import ArtifactDamaged

_DIGEST = re.compile(r"[0-9a-f]{64}")


class KeptVersion(msgspec.Struct, frozen=True):
    """A version of a set: the digest of its manifest, and the signature that goes with it."""

    version: str
    digest: str
    signer: str
    signature: str


class KeptSet(msgspec.Struct, frozen=True):
    """A set of tools that is deployed, where, and the version that its name means."""

    name: str
    current: str
    versions: tuple[KeptVersion, ...]
    labels: tuple[str, ...] = ()


class Shelf:
    """The folder, of one owner at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._artifacts = private_folder(folder / "artifacts")
        self._list = folder / "deployments.json"

    def sets(self) -> dict[str, KeptSet]:
        try:
            data = self._list.read_bytes()
            return {kept.name: kept for kept in msgspec.json.decode(data, type=list[KeptSet])}
        except FileNotFoundError:
            return {}
        except UNDECODABLE as error:
            aside = self._list.with_suffix(".damaged")
            os.replace(self._list, aside)
            log.error("%s is damaged and left aside as %s: %s", self._list, aside, error)
            return {}

    def write_sets(self, sets: dict[str, KeptSet], in_use: set[str]) -> None:
        """Keep these, and remove the artifacts that neither they nor `in_use` (digests) need any more."""
        write_private(self._list, msgspec.json.encode(list(sets.values())))
        needed = {version.digest for kept in sets.values() for version in kept.versions}
        for path in self._artifacts.iterdir():
            if path.name.partition(".")[0] not in needed | in_use:
                path.unlink(missing_ok=True)

    async def put(
        self, digest: str, manifest: bytes, content: AsyncIterable[bytes], check: Callable[[memoryview], object]
    ) -> None:
        """Keep an artifact, once `check` has seen all of its content and raised nothing."""
        target = self.content(digest)
        part = target.with_suffix(f".{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                async for piece in content:
                    await run_sync(file.write, piece)
                file.flush()
                await run_sync(os.fsync, file.fileno())
            await run_sync(_checked, part, check)
            await run_sync(os.replace, part, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
            raise
        await run_sync(write_private, self._artifacts / f"{digest}.json", manifest)

    def content(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise ArtifactDamaged(f"'{digest[:80]}' is no digest of an artifact")
        return self._artifacts / f"{digest}.tar"

    def manifest(self, digest: str) -> str:
        """Raises ArtifactDamaged where it is gone."""
        try:
            return self.content(digest).with_suffix(".json").read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtifactDamaged(
                f"the artifact {digest} is not on the shelf any more: {error}", hint="deploy it once more"
            ) from error


def _checked(file: Path, check: Callable[[memoryview], object]) -> None:
    with file.open("rb") as stream:
        # Not closed by hand: an error on its way up still refers to the pages, and they go with the last that does.
        check(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)))
