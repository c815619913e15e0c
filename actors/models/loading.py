"""From a model's path to what serves it: a tokenizer, a decoder. Never touches the network.

A path is a GGUF file or a folder in Hugging Face's layout. A LLaMA-shaped model gets the lean decoder, any other
causal model runs in transformers with this engine's attention.
"""

from __future__ import annotations

from pathlib import Path

import torch

from ...kernels.weights import WeightFormat
from ...runtime.errors import ConfigError
from .config import LlamaConfig
from .config_hf import FAMILIES
from .errors import UnsupportedModel
from .folder import ModelFolder
from .formats import format_of, resolve
from .gguf import GGUFFile
from .llama import LlamaDecoder
from .native_decoder import NativeDecoder, why_not_native
from .served import ModelOptions, ModelShape, ServedModel
from .tokenizer import Tokenizer
from .weights import gguf_weights, hf_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
KV_TYPES = {
    WeightFormat.FLOAT32: torch.float32,
    WeightFormat.BFLOAT16: torch.bfloat16,
    WeightFormat.INT8: torch.int8,
}


def dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"there is no weight type '{name}'", hint=f"choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def load_tokenizer(path: Path) -> Tokenizer:
    if path.is_dir():
        from .tokenizer_folder import tokenizer_from_folder

        return tokenizer_from_folder(ModelFolder(path))
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file)


def load_config(path: Path) -> ModelShape:
    """What the model's files say of its size, without its weights."""
    if not path.is_dir():
        with GGUFFile(path) as file:
            return LlamaConfig.from_gguf(file)
    folder = ModelFolder(path)
    lean = lean_config(folder)
    if lean is not None:
        return lean
    from .transformers_config import transformers_shape

    return transformers_shape(folder)


def load_model(path: Path, options: ModelOptions) -> ServedModel:
    """The model with its weights, ready to run. Raises NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError."""
    options = resolve(path, options)
    dtype = dtype_of(options.dtype)
    weights, kv = format_of(options.weights), format_of(options.kv)
    if kv not in KV_TYPES:
        raise ConfigError(f"keys and values cannot be kept in {kv}", hint=f"choose one of {', '.join(KV_TYPES)}")
    folder = ModelFolder(path) if path.is_dir() else None
    config = _lean_config(path, folder)
    if config is not None and not why_not_native(config):
        decoder = NativeDecoder(config, weights, kv, options.threads or torch.get_num_threads())
        _load_weights(decoder, path, folder)
        return decoder
    if weights is WeightFormat.FLOAT32:
        dtype = torch.float32  # these weights are multiplied in it
    if folder is not None and config is None:
        from .transformers_model import TransformersModel

        model = TransformersModel.load(folder, dtype, KV_TYPES[kv])
    else:
        model = load_decoder(path, dtype, KV_TYPES[kv])
    if weights != options.dtype and weights is not WeightFormat.FLOAT32:
        model.quantize(weights)
    return model


def load_decoder(path: Path, dtype: torch.dtype, kv: torch.dtype | None = None) -> LlamaDecoder:
    """The lean decoder with its weights converted to `dtype`. `UnsupportedModel` for other than its families."""
    folder = ModelFolder(path) if path.is_dir() else None
    if folder is not None:
        config = LlamaConfig.from_hf(folder.config)
    else:
        with GGUFFile(path) as file:
            config = LlamaConfig.from_gguf(file)
    decoder = LlamaDecoder(config, dtype, kv)
    _load_weights(decoder, path, folder)
    return decoder.eval()


def why_not_native_at(path: Path) -> str:
    """Why the model at `path` cannot run on the native kernels; empty where it can."""
    return _why_not_native(_lean_config(path, ModelFolder(path) if path.is_dir() else None))


def _why_not_native(config: LlamaConfig | None) -> str:
    return "it is not one of the families of the lean decoder" if config is None else why_not_native(config)


def _lean_config(path: Path, folder: ModelFolder | None) -> LlamaConfig | None:
    if folder is not None:
        return lean_config(folder)
    with GGUFFile(path) as file:
        return LlamaConfig.from_gguf(file)


def _load_weights(decoder: LlamaDecoder | NativeDecoder, path: Path, folder: ModelFolder | None) -> None:
    if folder is not None:
        decoder.load_weights(hf_weights(folder.tensors(), decoder.config))
        return
    with GGUFFile(path) as file:
        decoder.load_weights(gguf_weights(file, decoder.config))


def lean_config(folder: ModelFolder) -> LlamaConfig | None:
    """The decoder's shape, or None where the lean decoder does not do what the configuration asks for."""
    if folder.config.get("model_type") not in FAMILIES:
        return None
    try:
        return LlamaConfig.from_hf(folder.config)
    except UnsupportedModel:
        return None
