"""Models of the hubs: `hf:ORG/NAME` is on the Hugging Face hub, `ms:ORG/NAME` on ModelScope.

`@REVISION` at the end names a branch, tag or commit. `hf:ORG/NAME/FILE.gguf` is one file of a repository; without it
a model is its folder of safetensors, or a pipeline of diffusers with the folders of its models. HF_ENDPOINT and
MODELSCOPE_ENDPOINT name other servers than the public ones.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec

from ...runtime.errors import NoSuchModel
from ...schemas.models import ModelFile, PullProgress, PullStage
from .errors import PullFailed, UnsupportedModel
from .folder import CONFIG, PIPELINE_INDEX
from .http_files import RemoteFile, fetch_file, fetch_json, file_sha256
from .sources import Progress

_NAME = re.compile(r"(hf|ms):([\w.-]+/[\w.-]+)(?:/([\w./-]+\.gguf))?(?:@([\w./-]+))?")
_PAGE_SIZE = 200
# Weights, what describes them, templates; and the vocabularies of tokenizers that have no tokenizer.json.
_WANTED = (".safetensors", ".json", ".jinja", ".spm", ".model", "vocab.txt", "merges.txt")
# The same weights in another type beside the usual ones: model.fp16.safetensors, model.fp16-00001-of-00002.safetensors
_VARIANT = re.compile(r"[\w-]+\.[\w-]+\.safetensors")
_INNER = re.compile(r"(?!\.+/)[\w.-]+/(?!\.+$)[\w.-]+")


class HubName(NamedTuple):
    hub: str
    repo: str
    file: str
    revision: str


def is_hub_name(name: str) -> bool:
    return name.startswith(("hf:", "ms:"))


def parse_hub_name(name: str) -> HubName:
    """Raises NoSuchModel."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        raise NoSuchModel(
            f"'{name}' names no model of a hub", hint="hf:ORG/NAME, ms:ORG/NAME, both with @REVISION or not"
        )
    return HubName(match[1], match[2], match[3] or "", match[4] or "")


class HubModel(msgspec.Struct, frozen=True):
    """What a hub has of a model, at one commit: a `Source` of these files. `files[0]` stands for the model."""

    description: str
    license: str
    origin: str
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str] = {}

    def describe(self) -> str:
        return self.origin

    def model_files(self) -> tuple[ModelFile, ...]:
        """As far as the hub says: the SHA-256 of some files is known only once they are here."""
        return tuple(ModelFile(file.name, file.size, file.sha256) for file in self.files)

    def fetch(self, files: tuple[ModelFile, ...], folder: Path, progress: Progress) -> None:
        """All the model's files; the folder may hold some, or parts of them, from a pull that ended early."""
        total = sum(file.size for file in self.files)
        before = 0
        for file in self.files:

            def show(done: int, before: int = before) -> None:
                progress(PullProgress(PullStage.DOWNLOAD, before + done, total))

            fetch_file(file, folder, self.headers, show)
            before += file.size

    def fetched_files(self, folder: Path) -> tuple[ModelFile, ...]:
        return tuple(
            ModelFile(file.name, file.size, file.sha256 or file_sha256(folder / file.name)) for file in self.files
        )


def look_up(name: str) -> HubModel:
    """Ask the hub what it has under this name. Raises NoSuchModel, UnsupportedModel, PullFailed."""
    parsed = parse_hub_name(name)
    listing = _hugging_face(parsed) if parsed.hub == "hf" else _modelscope(parsed)
    return msgspec.structs.replace(listing, files=_choose(name, parsed.file, listing.files))


def look_up_data(name: HubName) -> HubModel:
    """All the files of a data set's repository. Raises PullFailed."""
    return _hugging_face(name, "datasets") if name.hub == "hf" else _modelscope_data(name)


def _choose(name: str, file: str, files: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
    """The one file that was asked for, or those of the model's folder (of the repository's top folder alone)."""
    if file:
        chosen = [found for found in files if found.name == file]
        if not chosen:
            raise NoSuchModel(f"{name}: there is no such file", hint=_ggufs(files))
        return (msgspec.structs.replace(chosen[0], name=Path(file).name),)
    top = {found.name: found for found in files if "/" not in found.name and found.name.endswith(_WANTED)}
    if PIPELINE_INDEX in top and CONFIG not in top:
        return (top[PIPELINE_INDEX], *_parts_of_pipeline(name, files))
    if CONFIG not in top or not any(name.endswith(".safetensors") for name in top):
        raise UnsupportedModel(f"{name} has no {CONFIG} with safetensors beside it", hint=_ggufs(files))
    return (top.pop(CONFIG), *sorted(top.values(), key=lambda found: found.name))


def _parts_of_pipeline(name: str, files: tuple[RemoteFile, ...]) -> list[RemoteFile]:
    """The files in its folders. What lies beside the index is the whole in one file, for other programs."""
    inner = [found for found in files if _INNER.fullmatch(found.name) and found.name.endswith(_WANTED)]
    chosen = [found for found in inner if not _VARIANT.fullmatch(Path(found.name).name)]
    if not any(found.name.endswith(".safetensors") for found in chosen):
        raise UnsupportedModel(f"{name} is a pipeline without safetensors in its folders")
    return sorted(chosen, key=lambda found: found.name)


def _ggufs(files: tuple[RemoteFile, ...]) -> str:
    names = sorted(file.name for file in files if file.name.endswith(".gguf"))
    return f"one of its files can be had as NAME/FILE: {', '.join(names)}" if names else ""


def _hugging_face(name: HubName, kind: str = "models") -> HubModel:
    """API: https://huggingface.co/docs/hub/api"""
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token = _hugging_face_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    revision = quote(name.revision or "main", safe="")
    found = fetch_json(f"{endpoint}/api/{kind}/{name.repo}/revision/{revision}?blobs=true", headers)
    answer = _convert(found, _HuggingFaceModel, name)
    base = f"{endpoint}/{name.repo}" if kind == "models" else f"{endpoint}/{kind}/{name.repo}"
    files = tuple(
        RemoteFile(
            name=entry.rfilename,
            url=f"{base}/resolve/{answer.sha}/{quote(entry.rfilename)}",
            size=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else "",
            git_id="" if entry.lfs else entry.blobId,
        )
        for entry in answer.siblings
    )
    license = (answer.cardData or {}).get("license")
    origin = f"Hugging Face hub, {name.repo} at {answer.sha}"
    return HubModel(name.repo, license if isinstance(license, str) else "", origin, files, headers)


class _LargeFile(msgspec.Struct):
    sha256: str


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int = 0
    blobId: str = ""
    lfs: _LargeFile | None = None


class _HuggingFaceModel(msgspec.Struct):
    sha: str
    siblings: list[_Sibling]
    cardData: dict[str, Any] | None = None


def _hugging_face_token() -> str | None:
    """What the hub's own tools use: HF_TOKEN, or the one that `hf auth login` wrote down."""
    try:
        from huggingface_hub import get_token
    except ImportError:
        return os.environ.get("HF_TOKEN")
    return get_token()


def _modelscope(name: HubName) -> HubModel:
    """API as the `modelscope` package speaks it."""
    base = f"{_modelscope_endpoint()}/api/v1/models/{name.repo}/repo"
    revision = quote(name.revision or "master", safe="")
    found = _modelscope_files(name, f"{base}/files?Revision={revision}&Recursive=true")
    return _from_modelscope(name, base, found)


def _modelscope_data(name: HubName) -> HubModel:
    """A data set's files are listed in pages."""
    base = f"{_modelscope_endpoint()}/api/v1/datasets/{name.repo}/repo"
    revision = quote(name.revision or "master", safe="")
    found: list[_ModelScopeFile] = []
    for page in itertools.count(1):
        query = f"Revision={revision}&Recursive=true&PageNumber={page}&PageSize={_PAGE_SIZE}"
        more = _modelscope_files(name, f"{base}/tree?{query}")
        found += more
        if len(more) < _PAGE_SIZE:
            break
    return _from_modelscope(name, base, found)


def _modelscope_endpoint() -> str:
    return (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")


def _modelscope_files(name: HubName, url: str) -> list[_ModelScopeFile]:
    answer = _convert(fetch_json(url, {}), _ModelScopeAnswer, name)
    if answer.Data is None:
        raise PullFailed(f"ModelScope does not give {name.repo}: {answer.Message}")
    return answer.Data.Files


def _from_modelscope(name: HubName, base: str, found: list[_ModelScopeFile]) -> HubModel:
    revision = quote(name.revision or "master", safe="")
    files = tuple(
        RemoteFile(
            name=entry.Path,
            url=f"{base}?Revision={quote(entry.Revision, safe='') or revision}&FilePath={quote(entry.Path, safe='')}",
            size=entry.Size,
            sha256=entry.Sha256,
        )
        for entry in found
        if entry.Type != "tree"
    )
    return HubModel(name.repo, "", f"ModelScope, {name.repo} at {name.revision or 'master'}", files)


class _ModelScopeFile(msgspec.Struct):
    Path: str
    Size: int = 0
    Type: str = "blob"
    Sha256: str = ""
    Revision: str = ""


class _ModelScopeFiles(msgspec.Struct):
    Files: list[_ModelScopeFile]


class _ModelScopeAnswer(msgspec.Struct):
    Data: _ModelScopeFiles | None = None
    Message: str = ""


def _convert(found: Any, kind: type[Any], name: HubName) -> Any:
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError as error:
        raise PullFailed(f"the hub's answer about {name.repo} makes no sense: {error}") from error
