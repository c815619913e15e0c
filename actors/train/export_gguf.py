"""A model's folder as one GGUF file, for this engine and for llama.cpp.

Tensors are read, turned and written one at a time, so that memory holds the largest of them and no more.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from ...runtime.errors import ConfigError, ModelDamaged
from ..models.config import LlamaConfig
from ..models.config_gguf import ROPE_FACTORS
from ..models.config_to_hf import rope_factors
from ..models.errors import UnsupportedModel
from ..models.folder import CONFIG, ModelFolder
from ..models.gguf import GGUFFile
from ..models.quantized_folder import folder_weights
from ..models.rope import RopeKind
from ..models.weights import gguf_name, hf_weights, permute
from .gguf_tokenizer import vocabulary_of
from .whole import check_free, whole_file

# The types of matrices that can be asked for, and how llama.cpp names a file of them.
TYPES = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
}
_FOUR_BITS = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1)
# Families whose files are of an architecture of their own; the rest of the LLaMA-shaped ones are written as `llama`,
# which is what their weights are under canonical names.
_OWN_ARCHITECTURE = ("qwen2", "qwen3")
# What YaRN's settings are where a file does not say, which is all that a file can say of them.
_YARN_DEFAULTS = {"attention_factor": None, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


@dataclass(frozen=True)
class Planned:
    """A tensor of the file to be. `heads`: of a projection whose rows change places, 0 for none."""

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    heads: int

    def encoded(self, tensor: torch.Tensor) -> np.ndarray:
        """The tensor as it stands in the file. ConfigError where its type does not hold it."""
        array = tensor.float().numpy()
        if self.heads:
            array = permute(array, self.heads)
        with np.errstate(over="ignore"):
            found = quants.quantize(np.ascontiguousarray(array), self.type)
        if self.type is GGMLQuantizationType.F16 and not np.isfinite(found).all():
            raise ConfigError(f"'{self.name}' does not fit into f16", hint="`--type bf16` has a wider range")
        return found

    @property
    def num_bytes(self) -> int:
        block, size = GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * size


def export_gguf(path: Path, out: Path, kind: str, *, name: str = "", license: str = "") -> tuple[int, int]:
    """Write the folder `path` into the file `out`, matrices in `kind` of `TYPES`. Returns the number of tensors, and of
    those that are kept in f16 because their rows are no whole number of blocks.

    Of four bits, the output matrix has eight: it costs little and matters most. Vectors are always f32. Raises
    ModelDamaged, UnsupportedModel, ConfigError, OSError.
    """
    check_free(out)
    folder = ModelFolder(path)
    config, architecture = _shape(folder)
    vocabulary = vocabulary_of(folder, config.vocab_size)
    plan = _plan(folder, config, architecture, TYPES[kind][0])
    factors = rope_factors(config) if config.rope_scaling.kind is RopeKind.LLAMA3 else []
    with whole_file(out) as making:
        writer = GGUFWriter(making, architecture)
        try:
            _describe(writer, config, kind, name or path.name, license)
            vocabulary.write(writer)
            _write(writer, folder, config, plan, np.array(factors, np.float32))
        finally:
            writer.close()
        _check(making, folder, config)
    wanted = TYPES[kind][0]
    fallen_back = sum(planned.type is GGMLQuantizationType.F16 is not wanted for planned in plan.values())
    return len(plan) + bool(factors), fallen_back


def _shape(folder: ModelFolder) -> tuple[LlamaConfig, str]:
    config = LlamaConfig.from_hf(folder.config)
    family = folder.config["model_type"]
    if config.windows:
        raise UnsupportedModel(f"{folder.path} has attention windows, which GGUF does not have for this family")
    scaling = config.rope_scaling
    if scaling.kind is RopeKind.YARN:
        others = {key: value for key, value in _YARN_DEFAULTS.items() if getattr(scaling, key) != value}
        if others or scaling.mscale or scaling.mscale_all_dim:
            raise UnsupportedModel(f"{folder.path} has settings of YaRN that GGUF does not have: {scaling}")
    return config, family if family in _OWN_ARCHITECTURE else "llama"


def _plan(
    folder: ModelFolder, config: LlamaConfig, architecture: str, wanted: GGMLQuantizationType
) -> dict[str, Planned]:
    """By canonical names, in the order in which the folder gives its tensors; no numbers are read."""
    plan: dict[str, Planned] = {}
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads} if architecture == "llama" else {}
    for canonical, weight in hf_weights(folder_weights(folder), config):
        name = gguf_name(canonical)
        shape: tuple[int, ...] = tuple(weight.shape)
        kind = wanted if len(shape) > 1 else GGMLQuantizationType.F32
        is_output = name == "output.weight" or (name == "token_embd.weight" and config.tied_embeddings)
        if kind in _FOUR_BITS and is_output:
            kind = GGMLQuantizationType.Q8_0
        if int(weight.shape[-1]) % GGML_QUANT_SIZES[kind][0]:
            kind = GGMLQuantizationType.F16
        part = name.rpartition(".")[0].rpartition(".")[2]
        plan[canonical] = Planned(name, shape, kind, heads.get(part, 0))
    return plan


def _describe(writer: GGUFWriter, config: LlamaConfig, kind: str, name: str, license: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if license:
        writer.add_license(license)
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(2)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    scaling, prefix = config.rope_scaling, f"{writer.arch}.rope.scaling"
    if scaling.kind in (RopeKind.LINEAR, RopeKind.YARN):
        writer.add_string(f"{prefix}.type", scaling.kind.value)
        writer.add_float32(f"{prefix}.factor", scaling.factor)
    if scaling.kind is RopeKind.YARN:
        writer.add_uint32(f"{prefix}.original_context_length", scaling.original_context)


def _write(
    writer: GGUFWriter, folder: ModelFolder, config: LlamaConfig, plan: dict[str, Planned], factors: np.ndarray
) -> None:
    if len(factors):
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for planned in plan.values():
        writer.add_tensor_info(
            planned.name, planned.shape, np.dtype(np.float32), planned.num_bytes, raw_dtype=planned.type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if len(factors):
        writer.write_tensor_data(factors)
    for planned, tensor in _tensors(folder, config, plan):
        writer.write_tensor_data(planned.encoded(tensor))


def _tensors(
    folder: ModelFolder, config: LlamaConfig, plan: dict[str, Planned]
) -> Iterator[tuple[Planned, torch.Tensor]]:
    """In the order of the plan, for which the directory of the file was made."""
    weights = hf_weights(folder_weights(folder, quantized=False), config)
    for (canonical, planned), (name, weight) in zip(plan.items(), weights, strict=True):
        if name != canonical or not isinstance(weight, torch.Tensor):
            raise ModelDamaged(f"{folder.path} changed while it was read")
        yield planned, weight


def _check(path: Path, folder: ModelFolder, config: LlamaConfig) -> None:
    """The file is read as what was meant; a tensor that is missing is missed here."""
    with GGUFFile(path) as file:
        found = LlamaConfig.from_gguf(file)
        num_matrices = sum(len(info.shape) > 1 for info in file.tensors.values())
    expected = 7 * config.num_layers + 1 + (not config.tied_embeddings)
    same = (found.hidden_size, found.num_layers, found.num_heads, found.qkv_bias, found.o_bias, found.mlp_bias)
    meant = (config.hidden_size, config.num_layers, config.num_heads, config.qkv_bias, config.o_bias, config.mlp_bias)
    if same != meant or num_matrices != expected or found.tied_embeddings != config.tied_embeddings:
        raise ModelDamaged(f"{folder.path}: its tensors are not those of the model that its {CONFIG} describes")
