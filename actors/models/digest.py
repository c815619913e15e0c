"""What a model's files hold, in one line: two models of one digest give the same answers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from ...runtime.errors import NoSuchModel
from .folder import is_model_folder, read_json
from .http_files import file_sha256
from .store import ModelStore, is_path

# In the folder of a LoRA adapter.
ADAPTER = "adapter_config.json"
# What is loaded of a model, and what lies beside it of no matter to its answers.
_LOADED = {".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt"}
_BESIDE = {"manifest.json", "report.json", "training.json"}


def model_digest(store: ModelStore, name: str) -> str:
    """Of a model of the store, by its manifest; of a path, by reading all of it, which takes a second for each GB. An
    adapter's is that of its base too.

    Raises NoSuchModel, ModelDamaged.
    """
    if is_adapter(name):
        path = Path(name).expanduser()
        return adapted(model_digest(store, base_of(store, path)), folder_digest(path))
    path = store.path(name)
    if not is_path(name):
        model = next(model for model in store.installed() if model.name == name)
        return _digest({file.name: file.sha256 for file in model.files if _is_loaded(Path(file.name))})
    return folder_digest(path)


def folder_digest(path: Path) -> str:
    """Of a folder with a model or an adapter, or of a file."""
    if path.is_file():
        return file_sha256(path)
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file() and _is_loaded(file)}
    return _digest({name: file_sha256(file) for name, file in files.items()})


def adapted(model: str, adapter: str) -> str:
    """Of a model with an adapter, by the digests of both."""
    return hashlib.sha256(f"{model} {adapter}".encode()).hexdigest()


def is_adapter(name: str) -> bool:
    """Whether a path is the folder of an adapter alone."""
    path = Path(name).expanduser()
    return is_path(name) and (path / ADAPTER).is_file() and not is_model_folder(path)


def base_of(store: ModelStore, adapter: Path) -> str:
    """The name, in the store or as a path, of the model that an adapter is for. Raises NoSuchModel."""
    named = read_json(adapter / ADAPTER).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise NoSuchModel(f"{adapter} does not say which model it is an adapter of", hint=f"it would, in {ADAPTER}")
    for name in (named, f"hf:{named}"):  # PEFT writes a hub's names without the hub
        try:
            store.path(name)
        except NoSuchModel:
            continue
        return name
    raise NoSuchModel(f"{adapter} is an adapter of {named}, which is not here", hint="pull it first")


def _is_loaded(file: Path) -> bool:
    return file.suffix in _LOADED and file.name not in _BESIDE


def _digest(files: dict[str, str]) -> str:
    if len(files) == 1:
        return next(iter(files.values()))
    return hashlib.sha256(msgspec.json.encode(sorted(files.items()))).hexdigest()
