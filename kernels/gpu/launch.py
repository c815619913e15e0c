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
    return too_old(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)) or _no_triton()


def too_old(name: str, capability: tuple[int, int]) -> str:
    """Why Triton kernels do not run on a card of this name and compute capability; empty where they do."""
    if capability >= MIN_CAPABILITY:
        return ""
    needed = ".".join(map(str, MIN_CAPABILITY))
    return f"{name} has compute capability {capability[0]}.{capability[1]}; Triton kernels need {needed}"


def _no_triton() -> str:
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
    if x is like and x.device.type == "cuda" and x.device.index != torch.cuda.current_device():
        # It would be launched there, and read memory that the other card has not.
        raise ValueError(f"{name} is on {x.device}, but the current device is cuda:{torch.cuda.current_device()}")
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, but the others on {like.device}")
    if ndim and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name} has the strides {x.stride()}; its last dimension must be contiguous")
