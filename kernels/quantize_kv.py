"""Keys and values in few bits: what a cache in int8 or int4 gives back, to measure what that costs.

int8: a scale for each token and head, codes -127 to 127. int4: for each token and head a scale and a minimum, codes 0
to 15 between the least and the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .channels import MAX_INT8
from .grouped import MAX_CODE


def through_int8(x: torch.Tensor) -> torch.Tensor:
    """x [..., head_dim] -> the same shape and type."""
    scales = x.abs().amax(-1, keepdim=True) / MAX_INT8
    return torch.where(scales > 0, (x / scales).round() * scales, 0)


def through_int4(x: torch.Tensor) -> torch.Tensor:
    """x [..., head_dim] -> the same shape and type."""
    low, high = x.aminmax(dim=-1, keepdim=True)
    scales = (high - low) / MAX_CODE
    return torch.where(scales > 0, ((x - low) / scales).round() * scales, 0) + low


KV_ROUNDING: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"int8": through_int8, "int4": through_int4}
