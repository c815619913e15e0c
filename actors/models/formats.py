"""In which formats a model is loaded where nobody says: as its file keeps it.

A file of 4-bit weights is served in 4 bits and one of bfloat16 in bfloat16, so that a model takes the memory and has
the speed that its file promises.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import msgspec
from gguf.constants import GGMLQuantizationType

from ...kernels.weights import WeightFormat
from ...runtime.errors import ConfigError
from .device import card_of, check_type, compute_device, half_type
from .folder import ModelFolder
from .gguf import GGUFFile
from .served import ModelOptions

# Formats that hold what these say exactly, or as good as that; everything else that is quantized goes into 8 bits.
_GGUF_FORMATS = {
    GGMLQuantizationType.F32: WeightFormat.FLOAT32,
    GGMLQuantizationType.F16: WeightFormat.BFLOAT16,
    GGMLQuantizationType.BF16: WeightFormat.BFLOAT16,
    GGMLQuantizationType.Q4_1: WeightFormat.INT4,
}


# Bits of a weight, scales and what else belongs to it included.
_BITS = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.5, "int4": 5.0, "nf4": 4.5}
# Without native kernels other formats save memory at the price of speed. A folder that was quantized for its size is
# kept so; a GGUF file is not.
_AS_FAST_IN_TORCH = (WeightFormat.FLOAT32, WeightFormat.BFLOAT16)


def format_of(name: str) -> WeightFormat:
    """The format of weights, or of keys and values, by its name. Raises ConfigError."""
    try:
        return WeightFormat(name)
    except ValueError:
        raise ConfigError(f"there is no format '{name}'", hint=f"choose one of {', '.join(WeightFormat)}") from None


def stored_format(path: Path) -> WeightFormat:
    """The format that comes nearest to what most of the weights in a model's files are kept in."""
    if path.is_dir():
        folder = ModelFolder(path)
        if folder.scheme is not None:
            return WeightFormat.INT8 if folder.scheme.layout.bits == 8 else WeightFormat.INT4
        name = folder.config.get("dtype") or folder.config.get("torch_dtype")
        return WeightFormat.BFLOAT16 if name in ("bfloat16", "float16") else WeightFormat.FLOAT32
    sizes: Counter[GGMLQuantizationType] = Counter()
    with GGUFFile(path) as file:
        for info in file.tensors.values():
            if len(info.shape) > 1:
                sizes[info.quantization] += math.prod(info.shape)
    most = max(sizes, key=sizes.__getitem__, default=GGMLQuantizationType.F32)
    return _GGUF_FORMATS.get(most, WeightFormat.INT8)


def stored_kv(path: Path) -> str:
    """The format that a folder was quantized to keep keys and values in; "" where it does not say."""
    scheme = ModelFolder(path).scheme if path.is_dir() else None
    return "" if scheme is None else scheme.kv


def is_quantized(path: Path) -> bool:
    """Whether a folder keeps its weights in few bits, in a layout that other engines read too."""
    return path.is_dir() and ModelFolder(path).scheme is not None


def kept_as_stored(path: Path, weights: WeightFormat) -> bool:
    """Whether matrices of a folder are loaded with the codes that its files have: they are, where `weights` has as many
    bits. In another format they are made numbers, and quantized anew."""
    return is_quantized(path) and weights is stored_format(path)


def estimated_bytes(path: Path, weights: str) -> int:
    """About what a model's weights will take in a format, from the size of its files."""
    files = [path] if not path.is_dir() else ModelFolder(path).weight_files()
    stored = sum(file.stat().st_size for file in files)
    return int(stored * _BITS[weights] / _BITS[stored_format(path)])


def resolve(path: Path, options: ModelOptions) -> ModelOptions:
    """`options` with nothing left open; see `ModelOptions`. Compiles the native kernels if that was not done before.

    Raises ConfigError for a device that is not there, and for a type that it does not compute in.
    """
    from .loading import why_not_native_at

    device = compute_device(options.device)
    card = card_of(device)
    for name in (options.dtype, options.weights, options.kv):
        check_type(name, card)

    def resolved(dtype: str, weights: str, kv: str) -> ModelOptions:
        return msgspec.structs.replace(options, dtype=dtype, weights=weights, kv=kv, device=str(device))

    if options.dtype:
        return resolved(options.dtype, options.weights or options.dtype, options.kv or options.dtype)
    half, stored = half_type(card), stored_format(path)
    weights = options.weights or (half if stored is WeightFormat.BFLOAT16 else stored.value)
    if not options.weights and stored not in _AS_FAST_IN_TORCH and not is_quantized(path):
        if card is not None:
            weights = half
        elif why_not_native_at(path):
            weights = WeightFormat.FLOAT32.value
    dtype = WeightFormat.FLOAT32.value if weights == WeightFormat.FLOAT32 else half
    return resolved(dtype, weights, options.kv or stored_kv(path) or dtype)
