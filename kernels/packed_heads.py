"""Heads in four bits: turned, cut into quarters, and each quarter rounded between ends of its own.

A few dimensions of keys are large in every token, and a step between the ends that they set is coarse for all others.
A Hadamard matrix S turns a head so that each of its dimensions gets a share of every other (as QuaRot does, Ashkboos et
al., 2024). With the powers of two s and t, of which s * t is 1 / head_dim, S s and S t undo each other. So keys and
values are kept as k S s and v S s; a query turned by S t has the scores it had, and what attention makes of the values
comes back by S t. All entries are powers of two: in any floating type nothing is rounded but the sums.

Heads whose size is no power of two are not turned.
"""

from __future__ import annotations

import functools

import torch

NUM_GROUPS = 4
MAX_CODE = 15
# How far the ends of a group are drawn in before its scale and minimum are fitted: of these what loses least stays.
SPANS = (1.0, 0.88)


def turns(head_dim: int) -> bool:
    return head_dim.bit_count() == 1


def turn(x: torch.Tensor) -> torch.Tensor:
    """Keys or values [..., head_dim] as they are kept, in x's type."""
    return x @ _hadamard(x.shape[-1], True, x.dtype, x.device) if turns(x.shape[-1]) else x


def turn_back(x: torch.Tensor) -> torch.Tensor:
    """What undoes `turn`; also of queries, whose scores with turned keys are those that they had with the keys."""
    return x @ _hadamard(x.shape[-1], False, x.dtype, x.device) if turns(x.shape[-1]) else x


def pack_heads(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[..., num_tokens, num_kv_heads, head_dim] -> codes, scales, minimums of a `PackedCache`."""
    groups = turn(x.float()).unflatten(-1, (NUM_GROUPS, -1))
    codes, scales, minimums = _fit(groups)
    first, second = codes.to(torch.uint8).flatten(-2).chunk(2, -1)
    return first | second << 4, scales, minimums


def unpack_turned(
    codes: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """What they stand for, [..., head_dim], still turned; computed in at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    groups = torch.cat([codes & 0x0F, codes >> 4], -1).unflatten(-1, (NUM_GROUPS, -1)).to(wide)
    return (groups * scales.to(wide)[..., None] + minimums.to(wide)[..., None]).flatten(-2).to(dtype)


def unpack_heads(codes: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The heads [..., head_dim] that they stand for."""
    wide = torch.promote_types(dtype, torch.float32)
    return turn_back(unpack_turned(codes, scales, minimums, wide)).to(dtype)


def _fit(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """groups float32 [..., size] -> codes as numbers [..., size], scales and minimums half [...].

    From the group's ends, and from ends drawn in, codes are found; then the line that fits these codes best, and its
    codes. Of the four what loses the least in squares stays. All at once: of a decoding step these tensors are so small
    that only the number of calls counts.
    """
    low, high = groups.aminmax(dim=-1)
    spans = groups.new_tensor(SPANS).view(-1, *[1] * low.ndim)
    width = (high - low) * spans
    scales = (width / MAX_CODE).half()  # [num_spans, ...]
    minimums = ((low + high - width) / 2).half()
    codes = _codes(groups, scales, minimums)
    line_scales, line_minimums = _best_line(groups, codes)
    line_codes = _codes(groups, line_scales, line_minimums)
    codes = torch.cat([codes, line_codes])
    scales, minimums = torch.cat([scales, line_scales]), torch.cat([minimums, line_minimums])
    away = torch.addcmul(minimums.float()[..., None], codes, scales.float()[..., None]).sub_(groups)
    best = away.square_().sum(-1).argmin(0, keepdim=True)
    kept_codes = codes.gather(0, best[..., None].expand(1, *groups.shape))
    return kept_codes[0], scales.gather(0, best)[0], minimums.gather(0, best)[0]


def _codes(groups: torch.Tensor, scales: torch.Tensor, minimums: torch.Tensor) -> torch.Tensor:
    wide = scales.float()
    steps = torch.where(wide > 0, 1 / wide, 0)
    return (groups - minimums.float()[..., None]).mul_(steps[..., None]).round_().clamp_(0, MAX_CODE)


def _best_line(groups: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and minimums with which codes lose the least squares; of codes that are all one, their mean."""
    size = groups.shape[-1]
    mean = groups.mean(-1, keepdim=True)
    centred = codes - codes.mean(-1, keepdim=True)
    spread = centred.square().sum(-1)
    slope = (centred * groups).sum(-1) / spread.clamp(min=1 / size)  # of two codes or more it is over a half
    return slope.half(), (mean[..., 0] - slope * codes.mean(-1)).half()


@functools.cache
def _hadamard(size: int, is_kept: bool, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[size, size], Sylvester's, times the power of two for what is kept, or for what undoes it."""
    halvings = size.bit_length() - 1
    scale = 2.0 ** -(halvings // 2 if is_kept else halvings - halvings // 2)
    with torch.inference_mode(False):  # it may take part in what needs gradients later
        rows = torch.arange(size)
        common = rows[:, None] & rows
        odd = sum((common >> bit & 1 for bit in range(halvings)), torch.zeros_like(common)) % 2
        return ((1 - 2 * odd) * scale).to(device, dtype)
