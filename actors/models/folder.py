"""A model's folder in Hugging Face's layout: what its JSON files say, and its tensors one at a time.

`config.json`, and either `model.safetensors` or `model.safetensors.index.json` with the files that it names. Weights
that are quantized already are told by `quantization_config` and put together by `quantized_folder`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ...runtime.errors import ModelDamaged, ModelError, NoSuchModel
from .errors import UnsupportedModel
from .quantization_config import GPTQ_FILE, scheme_of

if TYPE_CHECKING:
    import torch

CONFIG = "config.json"
# A pipeline of diffusers has this instead, and a folder for each model that it names.
PIPELINE_INDEX = "model_index.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Weights in other containers, which may run code when they are opened.
_OTHER_WEIGHTS = ("pytorch_model*.bin", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def is_model_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def is_pipeline_folder(path: Path) -> bool:
    return (path / PIPELINE_INDEX).is_file()


class ModelFolder:
    """`config` is the content of `config.json`; `scheme` is how weights are quantized, None where they are plain.

    Raises NoSuchModel, ModelDamaged, UnsupportedModel.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not is_model_folder(path):
            raise NoSuchModel(f"{path} is no model: it has no {CONFIG}", hint="give a folder in Hugging Face's layout")
        self.config = self.json(CONFIG)
        try:
            self.scheme = scheme_of(self.config, self.json(GPTQ_FILE, optional=True))
        except ModelError as error:
            raise type(error)(f"{path}: {error}", hint=error.hint) from error

    def json(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        """The object in a JSON file; empty where the file may be absent and is."""
        return read_json(self.path / name, optional=optional)

    def text(self, name: str) -> str | None:
        path = self.path / name
        try:
            return path.read_text("utf-8") if path.is_file() else None
        except UnicodeDecodeError as error:
            raise ModelDamaged(f"{path} is damaged: {error}") from error

    def weight_files(self) -> dict[Path, frozenset[str] | None]:
        """Each file of tensors, and which are to be read from it (None: all)."""
        if (self.path / WEIGHTS).is_file():
            return {self.path / WEIGHTS: None}
        if not (self.path / INDEX).is_file():
            others = [path.name for pattern in _OTHER_WEIGHTS for path in self.path.glob(pattern)]
            if others:
                raise UnsupportedModel(f"{self.path} has its weights in {others[0]}; safetensors are read here")
            raise ModelDamaged(f"{self.path} has neither {WEIGHTS} nor {INDEX}")
        places = self.json(INDEX).get("weight_map")
        if not isinstance(places, Mapping) or not places or not all(isinstance(v, str) for v in places.values()):
            raise ModelDamaged(f"{self.path / INDEX} has no 'weight_map' from tensors to files")
        files: dict[Path, frozenset[str] | None] = {}
        for name in sorted(set(places.values())):
            if Path(name).name != name or not (self.path / name).is_file():
                raise ModelDamaged(f"{self.path / INDEX} names the file '{name}', which is not there")
            files[self.path / name] = frozenset(tensor for tensor, file in places.items() if file == name)
        return files

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every (name, tensor) as the files have it; only one is in memory at a time, unless the caller keeps it.
        Whole numbers come only where weights are quantized."""
        for path, wanted in self.weight_files().items():
            yield from read_safetensors(path, wanted, only_floats=self.scheme is None)

    def tensor_names(self) -> frozenset[str]:
        """The tensors that there are, by the heads of the files."""
        found: set[str] = set()
        for path, wanted in self.weight_files().items():
            found |= safetensors_names(path) if wanted is None else wanted
        return frozenset(found)


def read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if optional:
            return {}
        raise ModelDamaged(f"there is no file {path}") from None
    try:
        # Some files of the wild hold NaN or Infinity, which is no JSON; none of the values read here are such.
        value = msgspec.json.decode(re.sub(rb":\s*-?(NaN|Infinity)\b", b": null", content))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ModelDamaged(f"{path} is damaged: it holds no JSON object")
    return value


def read_safetensors(
    path: Path, wanted: frozenset[str] | None = None, *, only_floats: bool = True
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one file, mapped into memory: each is read when it is asked for.

    `UnsupportedModel` for types that are no plain floating-point numbers (`only_floats`), or of less than two bytes.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if wanted is not None and (missing := wanted - names):
                raise ModelDamaged(f"{path} lacks {len(missing)} tensors, among them '{min(missing)}'")
            for name in sorted(names if wanted is None else wanted):
                tensor = file.get_tensor(name)
                is_float = tensor.dtype.is_floating_point
                if (is_float and tensor.dtype.itemsize < 2) or (only_floats and not is_float):
                    raise UnsupportedModel(f"{path}: tensor '{name}' has the type {tensor.dtype}, not read here")
                yield name, tensor
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}", hint="fetch the file again") from error


def safetensors_names(path: Path) -> frozenset[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return frozenset(file.keys())
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ModelDamaged(f"{path} is damaged: {error}", hint="fetch the file again") from error
