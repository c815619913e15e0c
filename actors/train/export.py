"""A model in the other of the two layouts that programs exchange: one GGUF file, or a folder of safetensors."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.errors import ConfigError
from ..models.converted import transformers_folder, write_converted
from ..models.errors import UnsupportedModel
from ..models.folder import CONFIG, ModelFolder, read_json, read_safetensors
from ..models.loading import dtype_of
from ..models.store import ModelStore
from .base_facts import base_facts
from .companions import copy_companions
from .whole import check_free, whole_folder

_SAFETENSORS_TYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


class ExportReport(msgspec.Struct, frozen=True):
    """`kept_in_f16`: matrices whose rows are no whole number of blocks of the type that was asked for."""

    model: str
    out: str
    to: str
    type: str
    num_tensors: int
    num_bytes: int
    kept_in_f16: int = 0


def export_to_gguf(model: str, out: Path, kind: str = "") -> ExportReport:
    """Write the model, a name of the store or a path, into the file `out`. `kind`: the type of its matrices, "" for the
    one nearest to the folder's own. Raises what `export_gguf` raises, NoSuchModel."""
    from .export_gguf import TYPES, export_gguf

    path = ModelStore().path(model)
    folder = transformers_folder(path)
    kind = kind or _own_type(folder)
    if kind not in TYPES:
        raise ConfigError(f"GGUF files are not written in {kind}", hint=f"choose one of {', '.join(TYPES)}")
    name = path.stem if path.is_file() else path.name
    num_tensors, kept = export_gguf(folder, out, kind, name=name, license=base_facts(model, path).license)
    return ExportReport(str(path), str(out), "gguf", kind, num_tensors, out.stat().st_size, kept)


def export_to_safetensors(model: str, out: Path, kind: str = "") -> ExportReport:
    """Write the model into the folder `out`. `kind`: f32, bf16 or f16; "" for what a folder has, and bf16 of a GGUF
    file. Raises NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError, OSError."""
    check_free(out)
    if kind and kind not in _SAFETENSORS_TYPES:
        raise ConfigError(
            f"safetensors are not written in {kind}",
            hint=f"choose one of {', '.join(_SAFETENSORS_TYPES)}, or quantize with `callboard quantize`",
        )
    path = ModelStore().path(model)
    with whole_folder(out) as making:
        if path.is_file():
            kind = kind or "bf16"
            write_converted(path, making, _SAFETENSORS_TYPES[kind])
        elif not kind:
            kind = _copied(path, making)
        else:
            _rewritten(path, making, _SAFETENSORS_TYPES[kind])
    folder = ModelFolder(out)
    num_bytes = sum(file.stat().st_size for file in folder.weight_files())
    return ExportReport(str(path), str(out), "safetensors", kind, len(folder.tensor_names()), num_bytes)


def _own_type(folder: Path) -> str:
    """Of four or eight bits there is no type with the same grid, so those are written as they are computed with."""
    found = ModelFolder(folder)
    names = {long: short for short, long in _SAFETENSORS_TYPES.items()}
    return names.get(str(found.config.get("dtype") or found.config.get("torch_dtype")), "f32")


def _copied(path: Path, folder: Path) -> str:
    """Weights as they are, quantized ones too. Returns their type."""
    for file in ModelFolder(path).weight_files():
        shutil.copyfile(file, folder / file.name)
    for index in path.glob("*.safetensors.index.json"):
        shutil.copyfile(index, folder / index.name)
    copy_companions(path, folder)
    return _own_type(path) if ModelFolder(path).scheme is None else "quantized"


def _rewritten(path: Path, folder: Path, dtype: str) -> None:
    """The same files with their numbers in another type, one file in memory at a time."""
    from safetensors.torch import save_file

    source = ModelFolder(path)
    if source.scheme is not None:
        raise UnsupportedModel(
            f"{path} is quantized, and its weights are copied as they are", hint="leave `--type` out"
        )
    to = dtype_of(dtype)
    for file, wanted in source.weight_files().items():
        tensors = {name: tensor.to(to) for name, tensor in read_safetensors(file, wanted)}
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ConfigError(f"'{name}' does not fit into {dtype}", hint="`--type bf16` has a wider range")
        save_file(tensors, folder / file.name, metadata={"format": "pt"})
    for index in path.glob("*.safetensors.index.json"):
        described: dict[str, Any] = read_json(index)
        size = sum((folder / file.name).stat().st_size for file in source.weight_files())
        described["metadata"] = {**described.get("metadata", {}), "total_size": size}
        (folder / index.name).write_bytes(msgspec.json.encode(described))
    config = {key: value for key, value in read_json(path / CONFIG).items() if key != "torch_dtype"}
    (folder / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode({**config, "dtype": dtype})))
    copy_companions(path, folder)
