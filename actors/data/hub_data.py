"""Data sets of the hubs: `hf:ORG/NAME` on the Hugging Face hub, `ms:ORG/NAME` on ModelScope.

`hf:ORG/NAME/FILE` is one file of it, `hf:ORG/NAME/FOLDER` those below a folder, `@REVISION` at the end a branch, tag or
commit. What was fetched stays in the cache folder and is not asked for again, so a run that goes on finds the same.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable
from pathlib import Path

import msgspec

from ...runtime.folders import Paths
from ..models.http_files import RemoteFile, fetch_file
from ..models.hub import HubName, look_up_data
from .errors import DataFailed, NoSuchData

_NAME = re.compile(r"(hf|ms):([\w.-]+/[\w.-]+)(?:/([\w./ -]+))?(?:@([\w./-]+))?")
_KINDS = {".jsonl": "JSON", ".ndjson": "JSON", ".json": "JSON", ".csv": "CSV", ".tsv": "CSV", ".parquet": "Parquet"}
_KINDS[".txt"] = "text"
# What says something about a data set and is none of its records.
_ABOUT = {"dataset_infos.json", "dataset_info.json", "configuration.json", "requirements.txt", "license.txt"}
_TRAIN = re.compile(r"(^|[/_.-])train(ing)?([/_.-]|$)", re.IGNORECASE)
_OTHER_SPLIT = re.compile(r"(^|[/_.-])(test|valid|validation|val|dev|eval)([/_.-]|$)", re.IGNORECASE)

_LIST = "files.json"


class Fetched(msgspec.Struct, frozen=True):
    """`files`: their names in the folder and their sizes, in the hub's order."""

    origin: str
    files: dict[str, int]


def is_data_name(name: str) -> bool:
    return name.startswith(("hf:", "ms:"))


def fetch_data(name: str, progress: Callable[[str, int, int], None] = lambda file, done, size: None) -> list[Path]:
    """The files of a data set to train on, fetched unless they are here.

    `progress` is called with a file's name, the bytes of it that are here, and all its bytes. Raises NoSuchData,
    PullFailed, DataFailed.
    """
    parsed = _parse(name)
    folder = Paths.find().cache / "data" / re.sub(r"[:/ ]", "--", name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _here(folder) or _fetch(name, parsed, folder, progress)
    except OSError as error:
        raise DataFailed(f"{name} cannot be written to {folder}: {error}", hint="is there room on the disk?") from error


def _here(folder: Path) -> list[Path]:
    """What an earlier call fetched, if it is whole."""
    if not (folder / _LIST).is_file():
        return []
    fetched = msgspec.json.decode((folder / _LIST).read_bytes(), type=Fetched)
    paths = {folder / name: size for name, size in fetched.files.items()}
    whole = all(path.is_file() and path.stat().st_size == size for path, size in paths.items())
    return list(paths) if whole else []


def _fetch(name: str, parsed: HubName, folder: Path, progress: Callable[[str, int, int], None]) -> list[Path]:
    found = look_up_data(parsed)
    paths: list[Path] = []
    sizes: dict[str, int] = {}
    for file in choose_files(name, parsed.file, found.files):
        flat = msgspec.structs.replace(file, name=file.name.replace("/", "--"))

        def show(done: int, file: RemoteFile = file) -> None:
            progress(file.name, done, file.size)

        paths.append(fetch_file(flat, folder, found.headers, show))
        sizes[flat.name] = file.size
    written = folder / (_LIST + ".new")
    written.write_bytes(msgspec.json.encode(Fetched(found.origin, sizes)))
    os.replace(written, folder / _LIST)
    return paths


def choose_files(name: str, wanted: str, files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """Those that were asked for; else those of the training split, else all that name no other split.

    Raises NoSuchData where there are none, or of several kinds: a repository often has the same records twice.
    """
    if exact := [file for file in files if wanted and file.name == wanted]:
        return exact
    below = [file for file in files if not wanted or file.name.startswith(wanted.rstrip("/") + "/")]
    data = [
        file
        for file in below
        if Path(file.name).suffix.lower() in _KINDS
        and Path(file.name).name.lower() not in _ABOUT
        and not any(part.startswith(".") for part in Path(file.name).parts)
    ]
    chosen = [file for file in data if _TRAIN.search(file.name)]
    chosen = chosen or [file for file in data if not _OTHER_SPLIT.search(file.name)]
    kinds = {_KINDS[Path(file.name).suffix.lower()] for file in chosen}
    if len(kinds) == 1:
        return chosen
    names = ", ".join(sorted(file.name for file in chosen or files)[:10])
    what = "has no file of training data" if not chosen else f"has files of several kinds ({', '.join(sorted(kinds))})"
    base = name.partition("@")[0].removesuffix(f"/{wanted}" if wanted else "")
    raise NoSuchData(f"{name} {what}", hint=f"name a file or folder of it, {base}/...: it has {names or 'none'}")


def _parse(name: str) -> HubName:
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise NoSuchData(f"'{name}' names no data set of a hub", hint="hf:ORG/NAME, ms:ORG/NAME, with @REVISION or not")
    return HubName(match[1], match[2], match[3] or "", match[4] or "")
