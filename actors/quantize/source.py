"""A model to be quantized, read a layer at a time: a GGUF file, or a folder in Hugging Face's layout."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch

from ...runtime.errors import ModelDamaged
from ..models.config import LlamaConfig
from ..models.errors import UnsupportedModel
from ..models.folder import CONFIG, INDEX, ModelFolder, read_json, safetensors_names
from ..models.gguf import GGUFFile
from ..models.llama import LlamaLayer
from ..models.loading import lean_config
from ..models.quantized_folder import folder_weights
from ..models.results import REPORT
from ..models.weights import gguf_layer, gguf_weights, hf_weights

_LAYER = "model.layers."
# What lies beside the weights and is as true of the quantized model.
_KEPT = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")
_NOT_KEPT = {CONFIG, INDEX, "quantize_config.json", REPORT}


class Source(Protocol):
    """`dtype`: in which plain tensors and scales of the quantized model are written."""

    config: LlamaConfig
    dtype: torch.dtype

    def tensors(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        """The canonical tensors of a layer; of None, those of no layer."""
        ...

    def write_rest(self, folder: Path) -> dict[str, Any]:
        """Everything but weights and `config.json`, whose content is returned."""
        ...

    def close(self) -> None: ...


def open_source(path: Path) -> Source:
    """A model to be quantized. Raises NoSuchModel, ModelDamaged, UnsupportedModel."""
    if not path.is_dir():
        return _GGUF(path)
    source = FolderSource(path)
    if source.is_quantized:
        raise UnsupportedModel(f"{path} is quantized already", hint="take the model that it was made from")
    return source


class FolderSource:
    """Also of a folder that is quantized, whose matrices come as the numbers that they stand for."""

    def __init__(self, path: Path) -> None:
        folder = ModelFolder(path)
        config = lean_config(folder)
        if config is None:
            kind = folder.config.get("model_type")
            raise UnsupportedModel(f"models of the kind '{kind}' are not quantized here; LLaMA-shaped ones are")
        self.config = config
        self._folder = folder
        name = folder.config.get("dtype") or folder.config.get("torch_dtype")
        self.dtype = torch.bfloat16 if name == "bfloat16" else torch.float16
        self.is_quantized = folder.scheme is not None

    def tensors(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        part = _Part(self._folder.path, layer)
        weights = part.tensors() if layer is None else folder_weights(part, quantized=False)
        for name, weight in hf_weights(weights, self.config):
            assert isinstance(weight, torch.Tensor)
            yield name, weight

    def write_rest(self, folder: Path) -> dict[str, Any]:
        for pattern in _KEPT:
            for file in self._folder.path.glob(pattern):
                if file.name not in _NOT_KEPT and file.is_file():
                    shutil.copy(file, folder / file.name)
        return dict(self._folder.config)

    def close(self) -> None:
        return


class _GGUF:
    dtype = torch.float16

    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        try:
            self.config = LlamaConfig.from_gguf(self._file)
        except BaseException:
            self._file.close()
            raise

    def tensors(self, layer: int | None) -> Iterator[tuple[str, torch.Tensor]]:
        names = [name for name in self._file.tensors if gguf_layer(name) == layer]
        yield from gguf_weights(self._file, self.config, names)

    def write_rest(self, folder: Path) -> dict[str, Any]:
        from transformers import AutoConfig, AutoTokenizer
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        path = self._file.path
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        config.tie_word_embeddings = self.config.tied_embeddings
        config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(folder)
        return read_json(folder / CONFIG)

    def close(self) -> None:
        self._file.close()


class _Part(ModelFolder):
    """A folder of which only the tensors of one layer are seen, or those of none."""

    def __init__(self, path: Path, layer: int | None) -> None:
        super().__init__(path)
        self._layer = layer

    def weight_files(self) -> dict[Path, frozenset[str] | None]:
        seen: dict[Path, frozenset[str] | None] = {}
        for file, wanted in super().weight_files().items():
            names = safetensors_names(file) if wanted is None else wanted
            if own := frozenset(name for name in names if _belongs(name, self._layer)):
                seen[file] = own
        return seen


def _belongs(name: str, layer: int | None) -> bool:
    if layer is None:
        return not name.startswith(_LAYER)
    return name.startswith(f"{_LAYER}{layer}.")


def load_layer(source: Source, index: int) -> LlamaLayer:
    """One layer in float32, checked. Raises ModelDamaged where a tensor is missing, has no place, another shape, or
    values that are not finite."""
    layer = LlamaLayer(source.config, index, torch.float32)
    parts = layer.parts()
    missing = set(parts)
    prefix = f"{_LAYER}{index}."
    for name, tensor in source.tensors(index):
        own = name.removeprefix(prefix)
        if own not in missing:
            raise ModelDamaged(f"tensor '{name}' has no place in this decoder, or came twice")
        whole = getattr(layer, parts[own].parameter).data
        rows = parts[own].rows
        _copy(name, tensor, whole if rows is None else whole[rows])
        missing.discard(own)
    if missing:
        raise ModelDamaged(f"{len(missing)} tensors are missing, among them '{prefix}{min(missing)}'")
    return layer


def load_vocabulary(source: Source) -> dict[str, torch.Tensor]:
    """Embedding, last norm and, where it is not the embedding again, output matrix, float32, by canonical name."""
    config = source.config
    shapes = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": (config.hidden_size,),
    }
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    found: dict[str, torch.Tensor] = {}
    for name, tensor in source.tensors(None):
        if name not in shapes or name in found:
            raise ModelDamaged(f"tensor '{name}' has no place in this decoder, or came twice")
        found[name] = torch.empty(shapes[name])
        _copy(name, tensor, found[name])
    if missing := shapes.keys() - found:
        raise ModelDamaged(f"{len(missing)} tensors are missing, among them '{min(missing)}'")
    return found


def _copy(name: str, tensor: torch.Tensor, target: torch.Tensor) -> None:
    if tensor.shape != target.shape:
        raise ModelDamaged(f"tensor '{name}' has the shape {tuple(tensor.shape)}; {tuple(target.shape)} is needed")
    target.copy_(tensor)
    if not bool(target.sum(dtype=torch.float64).isfinite()):
        raise ModelDamaged(f"tensor '{name}' holds values that are not finite")
