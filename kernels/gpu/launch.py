"""Where Triton kernels run, and what is checked before one is launched: an error names what does not fit."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection

import torch

# Cards before it have neither bfloat16 nor a current Triton.
MIN_CAPABILITY = (8, 0)


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors: read once, when `triton` is imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def unavailable(device: torch.device) -> str:
    """Why no Triton kernel runs on this device; empty where they do."""
    if interpreted():
        return ""
    if device.type != "cuda":
        return f"Triton kernels run on NVIDIA cards, not on {device.type}"
    return _why_not_on(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _why_not_on(index: int) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return (
            f"{torch.cuda.get_device_name(index)} has compute capability {capability[0]}.{capability[1]}; "
            f"Triton kernels need {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
        )
    try:
        import triton  # noqa: F401
    except ImportError:
        return "the package triton is not installed (the extra 'gpu' has it)"
    return ""


def check(name: str, x: torch.Tensor, *, dtypes: Collection[torch.dtype], ndim: int, like: torch.Tensor) -> None:
    """ValueError, naming the argument, where a tensor's type, number of dimensions, device or layout does not do.

    `like`: the op's first tensor, whose device all share. The last dimension must be contiguous.
    """
    if x.dtype not in dtypes:
        known = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise ValueError(f"{name} is {str(x.dtype).removeprefix('torch.')}; this kernel takes {known}")
    if x.ndim != ndim:
        raise ValueError(f"{name} has the shape {tuple(x.shape)}; {ndim} dimensions are needed")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, but the others on {like.device}")
    if ndim and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name} has the strides {x.stride()}; its last dimension must be contiguous")
