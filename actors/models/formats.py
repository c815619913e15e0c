"""In which formats a model is loaded where nobody says: as its file keeps it.

A file of 4-bit weights is served in 4 bits and one of bfloat16 in bfloat16, so that a model takes the memory and has
the speed that its file promises.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from gguf.constants import GGMLQuantizationType

from ...kernels.weights import WeightFormat
from ...runtime.errors import ConfigError
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


def format_of(name: str) -> WeightFormat:
    """The format of weights, or of keys and values, by its name. Raises ConfigError."""
    try:
        return WeightFormat(name)
    except ValueError:
        raise ConfigError(f"there is no format '{name}'", hint=f"choose one of {', '.join(WeightFormat)}") from None


def stored_format(path: Path) -> WeightFormat:
    """The format that comes nearest to what most of the weights in a model's files are kept in."""
    if path.is_dir():
        name = ModelFolder(path).config.get("dtype") or ModelFolder(path).config.get("torch_dtype")
        return WeightFormat.BFLOAT16 if name in ("bfloat16", "float16") else WeightFormat.FLOAT32
    sizes: Counter[GGMLQuantizationType] = Counter()
    with GGUFFile(path) as file:
        for info in file.tensors.values():
            if len(info.shape) > 1:
                sizes[info.quantization] += math.prod(info.shape)
    most = max(sizes, key=sizes.__getitem__, default=GGMLQuantizationType.F32)
    return _GGUF_FORMATS.get(most, WeightFormat.INT8)


def resolve(path: Path, options: ModelOptions) -> ModelOptions:
    """`options` with nothing left open; see `ModelOptions`. Compiles the native kernels if that was not done before."""
    from .loading import why_not_native_at

    if options.dtype:
        weights, kv = options.weights or options.dtype, options.kv or options.dtype
        return ModelOptions(dtype=options.dtype, weights=weights, kv=kv, threads=options.threads)
    stored = stored_format(path)
    if options.weights or why_not_native_at(path):
        weights = options.weights or (stored if stored is WeightFormat.BFLOAT16 else WeightFormat.FLOAT32).value
    else:
        weights = stored.value
    dtype = (WeightFormat.FLOAT32 if weights == WeightFormat.FLOAT32 else WeightFormat.BFLOAT16).value
    return ModelOptions(dtype=dtype, weights=weights, kv=options.kv or dtype, threads=options.threads)
