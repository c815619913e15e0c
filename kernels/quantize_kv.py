"""Keys and values in few bits: what a cache in int8 or int4 gives back, to measure what that costs.

int8: a scale for each token and head, codes -127 to 127. int4: what `packed_heads` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .channels import MAX_INT8
from .packed_heads import pack_heads, unpack_heads


def through_int8(x: torch.Tensor) -> torch.Tensor:
    """x [..., head_dim] -> the same shape and type."""
    scales = x.abs().amax(-1, keepdim=True) / MAX_INT8
    return torch.where(scales > 0, (x / scales).round() * scales, 0)


def through_int4(x: torch.Tensor) -> torch.Tensor:
    """x [..., head_dim] -> the same shape and type."""
    return unpack_heads(*pack_heads(x.flatten(0, -3)), x.dtype).view_as(x)


KV_ROUNDING: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"int8": through_int8, "int4": through_int4}
