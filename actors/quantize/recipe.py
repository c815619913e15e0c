"""What is to be done to a model's weights, as one frozen value, and what it asks of the model."""

from __future__ import annotations

import enum

import msgspec
import torch

from ...kernels.quantize_grid import GridSpec
from ...runtime.errors import UsageError
from ..models.config import LlamaConfig
from ..models.errors import UnsupportedModel

# Of learned rounding, for each layer (Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent", 2023).
STEPS = 200
# What is tried where none is asked for: sizes that other engines' kernels take too.
GROUP_SIZES = (128, 64, 32, 16)


class Scaling(enum.Enum):
    """What is done to inputs before weights are rounded."""

    NONE = enum.auto()
    AWQ = enum.auto()
    SMOOTH = enum.auto()


class Rounding(enum.Enum):
    NEAREST = enum.auto()
    CLIPPED = enum.auto()
    GPTQ = enum.auto()
    LEARNED = enum.auto()


class Method(enum.StrEnum):
    """`AWQ_GPTQ` scales inputs as AWQ does and then rounds as GPTQ does; `GPTAQ` first fits weights to the inputs that
    the quantized layers before them give."""

    RTN = "rtn"
    AWQ = "awq"
    GPTQ = "gptq"
    AWQ_GPTQ = "awq+gptq"
    SMOOTH = "smooth"
    GPTAQ = "gptaq"
    AUTOROUND = "autoround"

    @property
    def scaling(self) -> Scaling:
        if self is Method.SMOOTH:
            return Scaling.SMOOTH
        return Scaling.AWQ if self in (Method.AWQ, Method.AWQ_GPTQ) else Scaling.NONE

    def rounding(self, bits: int) -> Rounding:
        if self in (Method.GPTQ, Method.AWQ_GPTQ, Method.GPTAQ):
            return Rounding.GPTQ
        if self is Method.AUTOROUND:
            return Rounding.LEARNED
        # Of eight bits nothing is worth clipping.
        return Rounding.CLIPPED if self is Method.AWQ and bits == 4 else Rounding.NEAREST


class Layout(enum.StrEnum):
    COMPRESSED = "compressed-tensors"
    AWQ = "awq"


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """4 bits: weights alone, in groups of `group_size` inputs with zero points (none if `symmetric`). 8 bits: weights
    with a scale for each output and inputs with one for each token, both symmetric. `alpha`: of SmoothQuant, None to
    search for each product's. `steps`, `seed`: of learned rounding. Raises UsageError."""

    method: Method = Method.GPTQ
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    layout: Layout = Layout.COMPRESSED
    kv: str = ""
    alpha: float | None = None
    scale_dtype: str = "float16"
    steps: int = STEPS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UsageError(f"weights cannot be kept in {self.bits} bits here", hint="--bits is 4 or 8")
        if self.method is Method.SMOOTH and self.bits != 8:
            raise UsageError("SmoothQuant is for weights and inputs of 8 bits", hint="--method smooth --bits 8")
        if self.method is Method.AUTOROUND and self.bits != 4:
            raise UsageError("AutoRound is for weights of 4 bits", hint="--bits 4")
        if self.steps < 1:
            raise UsageError(f"--steps is 1 or more, not {self.steps}")
        if self.group_size < 2 or self.group_size % 2:
            raise UsageError(f"--group-size is an even number of inputs, not {self.group_size}")
        if self.layout is Layout.AWQ and (self.bits != 4 or self.symmetric):
            raise UsageError("AWQ's layout holds 4-bit weights with zero points", hint="leave out --format awq")
        if self.kv not in ("", "int8", "int4"):
            raise UsageError(f"keys and values cannot be kept in {self.kv}", hint="--kv is int8 or int4")
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha lies between 0 and 1, and is {self.alpha}")

    @property
    def spec(self) -> GridSpec:
        if self.bits == 8:
            return GridSpec(8, symmetric=True, scale_dtype=torch.float32)
        return GridSpec(4, self.group_size, self.symmetric, getattr(torch, self.scale_dtype))

    def of_type(self, dtype: torch.dtype) -> Recipe:
        """The same with scales in the type of a checkpoint's plain tensors, to which other engines convert them."""
        return msgspec.structs.replace(self, scale_dtype=str(dtype).removeprefix("torch."))

    @property
    def wants_plain(self) -> bool:
        """Whether the method looks at what the model's own layers make of the text."""
        return self.method in (Method.GPTAQ, Method.AUTOROUND)

    @property
    def fits_inputs(self) -> bool:
        """Whether weights are fitted to the inputs of the quantized model before they are rounded."""
        return self.method is Method.GPTAQ

    @property
    def quantized_inputs(self) -> bool:
        return self.bits == 8

    def check(self, config: LlamaConfig) -> None:
        """Raises UsageError where the model's matrices cannot be laid out so, and UnsupportedModel."""
        for name, size in _widths(config).items():
            if self.bits == 4 and size % self.group_size:
                fits = fitting_group_size(config)
                hint = f"--group-size {fits} fits" if fits != self.group_size else ""
                raise UsageError(f"the {name} of this model, {size}, is no multiple of {self.group_size}", hint=hint)
        kv_size = config.num_kv_heads * config.head_dim
        if self.layout is Layout.AWQ and any(
            size % 8 for size in (config.hidden_size, config.intermediate_size, kv_size)
        ):
            raise UnsupportedModel("AWQ's layout needs matrices whose outputs come in eights")


def _widths(config: LlamaConfig) -> dict[str, int]:
    """Inputs of the matrices that are quantized."""
    return {
        "hidden size": config.hidden_size,
        "inner size": config.intermediate_size,
        "attention's width": config.num_heads * config.head_dim,
    }


def fitting_group_size(config: LlamaConfig) -> int:
    """The largest usual group that divides every row of the model's matrices; 128 where none does, which is then
    refused by its name."""
    widths = _widths(config).values()
    return next((size for size in GROUP_SIZES if not any(width % size for width in widths)), GROUP_SIZES[0])
