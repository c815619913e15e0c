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
from .device import CPU
from .errors import UnsupportedModel
from .folder import ModelFolder
from .formats import format_of, kept_as_stored, resolve
from .gguf import GGUFFile
from .llama import LlamaDecoder
from .native_decoder import NativeDecoder, why_not_native
from .quantized_folder import folder_weights
from .served import ModelOptions, ModelShape, ServedModel
from .tokenizer_loading import load_tokenizer as load_tokenizer
from .weights import gguf_weights, hf_weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KV_TYPES = {**DTYPES, "int8": torch.int8, "int4": torch.uint8}


def dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ConfigError(f"there is no weight type '{name}'", hint=f"choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


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
    device = torch.device(options.device)
    # None: as numbers of the type that is computed in, and that may be one that no other format is beside.
    weights = None if options.weights == options.dtype else format_of(options.weights)
    if options.kv not in KV_TYPES:
        raise ConfigError(
            f"keys and values cannot be kept in {options.kv}", hint=f"choose one of {', '.join(KV_TYPES)}"
        )
    kv = KV_TYPES[options.kv]
    folder = ModelFolder(path) if path.is_dir() else None
    config = _lean_config(path, folder)
    as_stored = weights is not None and kept_as_stored(path, weights)
    if device == CPU and config is not None and not why_not_native(config):
        threads = options.threads or torch.get_num_threads()
        formats = format_of(options.weights), format_of(options.kv)
        decoder = NativeDecoder(config, *formats, threads, quantized=as_stored)
        _load_weights(decoder, path, folder)
        return decoder
    if weights is WeightFormat.FLOAT32:
        dtype = torch.float32  # these weights are multiplied in it
    if folder is not None and config is None:
        from .transformers_model import TransformersModel

        model = TransformersModel.load(folder, dtype, kv, quantized=as_stored, device=device)
    else:
        model = load_decoder(path, dtype, kv, quantized=as_stored, device=device, cuda_graphs=options.cuda_graphs)
    if weights is not None and weights is not WeightFormat.FLOAT32 and not as_stored:
        model.quantize(weights)
    model.settle()
    return model


def load_decoder(
    path: Path,
    dtype: torch.dtype,
    kv: torch.dtype | None = None,
    *,
    quantized: bool = False,
    device: torch.device = CPU,
    cuda_graphs: bool = True,
) -> LlamaDecoder:
    """The lean decoder on `device`, with its weights converted to `dtype`, or where the folder has them quantized, as
    they are (`quantized`). `cuda_graphs`: see `LlamaDecoder`. `UnsupportedModel` for other than its families."""
    folder = ModelFolder(path) if path.is_dir() else None
    if folder is not None:
        config = LlamaConfig.from_hf(folder.config)
    else:
        with GGUFFile(path) as file:
            config = LlamaConfig.from_gguf(file)
    with device:
        decoder = LlamaDecoder(config, dtype, kv, quantized=quantized, cuda_graphs=cuda_graphs)
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
        tensors = folder_weights(folder, quantized=decoder.quantized)
        decoder.load_weights(hf_weights(tensors, decoder.config))
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
