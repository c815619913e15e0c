"""What a folder says of weights that it holds in few bits: the `quantization_config` of AWQ, GPTQ, compressed-tensors.

Read here: 4-bit weights in groups (AWQ's GEMM layout, GPTQ, compressed-tensors' pack-quantized) and 8-bit weights with
a scale for each output (compressed-tensors' int-quantized and naive-quantized). Whatever else is asked for is
`UnsupportedModel`, in a line that names it. Nothing here imports torch: folders are looked at where no model is loaded.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...runtime.errors import ModelDamaged
from .errors import UnsupportedModel

# Where older quantizers left their settings: beside `config.json`, with nothing said in that.
GPTQ_FILE = "quantize_config.json"


class Layout(enum.Enum):
    """The tensors that make up a matrix named `X`, without which there is none, and those that may be there."""

    AWQ = (("qweight", "qzeros", "scales"), ())
    GPTQ = (("qweight", "qzeros", "scales"), ("g_idx",))
    PACKED = (("weight_packed", "weight_scale", "weight_shape"), ("weight_zero_point", "weight_g_idx"))
    INT8 = (("weight", "weight_scale"), ("weight_zero_point",))

    @property
    def required(self) -> tuple[str, ...]:
        return self.value[0]

    @property
    def parts(self) -> frozenset[str]:
        return frozenset(self.value[0] + self.value[1])

    @property
    def sign(self) -> str:
        """The tensor that says that there is such a matrix: no plain one has it."""
        return {Layout.PACKED: "weight_packed", Layout.INT8: "weight_scale"}.get(self, "qweight")

    @property
    def bits(self) -> int:
        return 8 if self is Layout.INT8 else 4


@dataclass(frozen=True)
class Scheme:
    """How the quantized matrices of a folder are laid out.

    `group_size`: inputs that share a scale, -1 for all of a row. `version`: of GPTQ, whose first stores zero points
    less one. `symmetric`: there are no zero points. `quantized_inputs`: a product rounds its inputs to int8 too, a
    scale for each token, as the file was made for; else weights alone are in few bits. `kv`: the format that the file
    means keys and values to be kept in, "" where it says nothing.
    """

    layout: Layout
    group_size: int = -1
    version: int = 1
    symmetric: bool = False
    quantized_inputs: bool = False
    kv: str = ""


def scheme_of(config: Mapping[str, Any], beside: Mapping[str, Any]) -> Scheme | None:
    """From the content of `config.json` and of `quantize_config.json` (empty where there is none); None for a folder
    of plain weights. Raises UnsupportedModel, ModelDamaged."""
    raw = config.get("quantization_config", config.get("compression_config"))
    if raw is None and beside:
        raw = {"quant_method": "gptq", **beside}
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ModelDamaged(f"config.json: 'quantization_config' is {raw!r}, which is no object")
    method = raw.get("quant_method")
    reader = _READERS.get(method) if isinstance(method, str) else None
    if reader is None:
        raise UnsupportedModel(
            f"its weights are quantized by '{method}'; {', '.join(_READERS)} are read here",
            hint="take the unquantized model; the engine's `weights` option quantizes while it loads",
        )
    return reader(raw)


def _awq(raw: Mapping[str, Any]) -> Scheme:
    # Newer files say `format`, older ones `version`.
    layout = str(raw.get("version") or raw.get("format") or "gemm").lower()
    if layout != "gemm":
        raise UnsupportedModel(f"its weights are in AWQ's layout '{layout}'; 'gemm' is read here")
    _four_bits("AWQ", raw.get("bits", raw.get("w_bit", 4)))
    return Scheme(Layout.AWQ, _group_size(raw.get("group_size", raw.get("q_group_size", 128))))


def _gptq(raw: Mapping[str, Any]) -> Scheme:
    layout = str(raw.get("checkpoint_format") or raw.get("format") or "gptq").lower()
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedModel(f"its weights are in GPTQ's layout '{layout}'; 'gptq' and 'gptq_v2' are read here")
    _four_bits("GPTQ", raw.get("bits", 4))
    return Scheme(Layout.GPTQ, _group_size(raw.get("group_size", 128)), version=2 if layout == "gptq_v2" else 1)


def _compressed_tensors(raw: Mapping[str, Any]) -> Scheme:
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or not groups or not all(isinstance(one, Mapping) for one in groups.values()):
        raise ModelDamaged("config.json: the 'quantization_config' has no 'config_groups'")
    sparsity = raw.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format", "dense") != "dense":
        raise UnsupportedModel(f"its weights are sparse ('{sparsity['format']}'), which is not read here")
    schemes = {_compressed_group(one, one.get("format") or raw.get("format")) for one in groups.values()}
    if len(schemes) > 1:
        raise UnsupportedModel("its matrices are quantized in more than one way, which is not read here")
    return replace(schemes.pop(), kv=_kv_format(raw.get("kv_cache_scheme")))


def _kv_format(scheme: object) -> str:
    if scheme is None:
        return ""
    if not isinstance(scheme, Mapping):
        raise ModelDamaged(f"config.json: 'kv_cache_scheme' is {scheme!r}, which is no object")
    kind, bits = scheme.get("type", "int"), scheme.get("num_bits")
    if kind != "int" or bits not in (4, 8) or not scheme.get("dynamic"):
        when = "dynamic" if scheme.get("dynamic") else "static"
        raise UnsupportedModel(
            f"it wants keys and values in {when} {bits}-bit {kind}; dynamic 8-bit and 4-bit int are done here"
        )
    return f"int{bits}"


def _compressed_group(group: Mapping[str, Any], layout: object) -> Scheme:
    weights = group.get("weights")
    inputs = group.get("input_activations")
    if not isinstance(weights, Mapping) or not isinstance(inputs, Mapping | None):
        raise ModelDamaged("config.json: a group of 'config_groups' does not say how weights are quantized")
    if layout not in ("pack-quantized", "int-quantized", "naive-quantized"):
        raise UnsupportedModel(
            f"its weights are in the layout '{layout}' of compressed-tensors; "
            "pack-quantized, int-quantized and naive-quantized are read here"
        )
    kind, bits = weights.get("type", "int"), weights.get("num_bits")
    symmetric, strategy = bool(weights.get("symmetric", True)), weights.get("strategy")
    if layout == "pack-quantized":
        if (kind, bits) != ("int", 4) or inputs is not None or strategy not in ("group", "channel"):
            raise UnsupportedModel(
                f"its pack-quantized weights are {bits}-bit {kind} by {strategy}, with {_of_inputs(inputs)}; "
                "4-bit int by group or channel, of weights alone, are read here"
            )
        size = _group_size(weights.get("group_size")) if strategy == "group" else -1
        return Scheme(Layout.PACKED, size, symmetric=symmetric)
    if (kind, bits, strategy, symmetric) != ("int", 8, "channel", True):
        grid = "symmetric" if symmetric else "asymmetric"
        raise UnsupportedModel(
            f"its {layout} weights are {grid} {bits}-bit {kind} by {strategy}; "
            "symmetric 8-bit int by channel are read here"
        )
    if inputs is not None:
        asked = (inputs.get("type", "int"), inputs.get("num_bits"), inputs.get("strategy"))
        if asked != ("int", 8, "token") or not inputs.get("dynamic") or not inputs.get("symmetric", True):
            raise UnsupportedModel(
                f"its products take {_of_inputs(inputs)}; inputs in dynamic symmetric 8-bit int by token are done here"
            )
    return Scheme(Layout.INT8, symmetric=True, quantized_inputs=inputs is not None)


def _of_inputs(inputs: Mapping[str, Any] | None) -> str:
    if inputs is None:
        return "inputs as they are"
    when = "dynamic" if inputs.get("dynamic") else "static"
    grid = "symmetric" if inputs.get("symmetric", True) else "asymmetric"
    bits, kind, strategy = inputs.get("num_bits"), inputs.get("type", "int"), inputs.get("strategy")
    return f"inputs in {when} {grid} {bits}-bit {kind} by {strategy}"


def _four_bits(method: str, bits: object) -> None:
    if bits != 4:
        raise UnsupportedModel(f"its weights are quantized by {method} to {bits} bits; 4 are read here")


def _group_size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or (value < 1 and value != -1):
        raise ModelDamaged(f"config.json: the 'group_size' of its quantization is {value!r}")
    return value


_READERS = {"awq": _awq, "gptq": _gptq, "compressed-tensors": _compressed_tensors}
