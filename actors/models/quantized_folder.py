"""The tensors of a folder whose weights are quantized: each matrix put together from the tensors that it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch

from ...kernels import checkpoint_formats
from ...kernels.quantized import QuantizedWeight
from ...kernels.weights import WeightFormat
from ...runtime.errors import ModelDamaged
from .errors import UnsupportedModel
from .folder import ModelFolder
from .matrices import QUANTIZED, Quantized, Weight
from .quantization_config import Layout, Scheme


def folder_weights(folder: ModelFolder, *, quantized: bool = True) -> Iterator[tuple[str, Weight]]:
    """Every (name, tensor) of a folder, a quantized matrix `X` as `X.weight`.

    `quantized`: as it is kept; otherwise as the numbers that it stands for, float32. Parts of a matrix may lie in
    several files; they are in memory until the last one is read. Raises ModelDamaged, UnsupportedModel.
    """
    if folder.scheme is None:
        yield from folder.tensors()
        return
    for name, weight in _matrices(folder, folder.scheme):
        yield name, weight.dequantize() if isinstance(weight, QUANTIZED) and not quantized else weight


def _matrices(folder: ModelFolder, scheme: Scheme) -> Iterator[tuple[str, Weight]]:
    parts_of = _parts(folder, scheme.layout)
    waiting: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in folder.tensors():
        matrix, _, part = name.rpartition(".")
        if part in parts_of.get(matrix, ()):
            have = waiting.setdefault(matrix, {})
            have[part] = tensor
            if len(have) == len(parts_of[matrix]):
                yield f"{matrix}.weight", _matrix(folder, scheme, matrix, waiting.pop(matrix))
        elif not tensor.dtype.is_floating_point:
            raise UnsupportedModel(f"{folder.path}: tensor '{name}' has the type {tensor.dtype}, not read here")
        else:
            yield name, tensor


def _parts(folder: ModelFolder, layout: Layout) -> Mapping[str, frozenset[str]]:
    """Which tensors there are of each quantized matrix."""
    found: dict[str, set[str]] = {}
    for name in folder.tensor_names():
        matrix, _, part = name.rpartition(".")
        found.setdefault(matrix, set()).add(part)
    matrices = {matrix: layout.parts & parts for matrix, parts in found.items() if layout.sign in parts}
    if not matrices:
        raise ModelDamaged(f"{folder.path} says that its weights are quantized, but has no tensor '*.{layout.sign}'")
    for matrix, parts in sorted(matrices.items()):
        for part in layout.required:
            if part not in parts:
                raise ModelDamaged(f"{folder.path}: tensor '{matrix}.{part}' is missing")
    return matrices


def _matrix(folder: ModelFolder, scheme: Scheme, name: str, tensors: Mapping[str, torch.Tensor]) -> Quantized:
    try:
        return _READERS[scheme.layout](scheme, tensors)
    except ValueError as error:
        raise ModelDamaged(f"{folder.path}: matrix '{name}': {error}") from error


def _awq(scheme: Scheme, tensors: Mapping[str, torch.Tensor]) -> Quantized:
    qweight = tensors["qweight"]
    size = scheme.group_size if scheme.group_size > 0 else qweight.shape[0]
    return checkpoint_formats.from_awq(qweight, tensors["qzeros"], tensors["scales"], size)


def _gptq(scheme: Scheme, tensors: Mapping[str, torch.Tensor]) -> Quantized:
    return checkpoint_formats.from_gptq(
        tensors["qweight"], tensors["qzeros"], tensors["scales"], tensors.get("g_idx"), scheme.version
    )


def _packed(scheme: Scheme, tensors: Mapping[str, torch.Tensor]) -> Quantized:
    zeros = tensors.get("weight_zero_point")
    if scheme.symmetric and zeros is not None and bool((zeros == 0).all()):
        zeros = None  # old files say in so many numbers that there is nothing to subtract
    return checkpoint_formats.from_compressed_int4(
        tensors["weight_packed"],
        tensors["weight_scale"],
        zeros,
        tensors.get("weight_g_idx"),
        tensors["weight_shape"],
        scheme.symmetric,
    )


def _int8(scheme: Scheme, tensors: Mapping[str, torch.Tensor]) -> Quantized:
    zeros = tensors.get("weight_zero_point")
    if zeros is not None and bool(zeros.any()):
        raise ValueError("weight_zero_point is not zero, but the grid is said to be symmetric")
    weight = checkpoint_formats.from_compressed_int8(tensors["weight"], tensors["weight_scale"])
    if scheme.quantized_inputs:
        return weight
    # Of weights alone: a scale for each token would cost what the file's maker did not mean to pay.
    return QuantizedWeight(WeightFormat.INT8, weight.shape[1], weight.codes, weight.scales.float().reshape(-1, 1))


_READERS: Mapping[Layout, Callable[[Scheme, Mapping[str, torch.Tensor]], Quantized]] = {
    Layout.AWQ: _awq,
    Layout.GPTQ: _gptq,
    Layout.PACKED: _packed,
    Layout.INT8: _int8,
}
