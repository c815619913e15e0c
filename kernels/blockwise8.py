"""Numbers in eight bits for an optimizer's state: a scale for each 256 of them, and codes that are dense near zero.

Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (arXiv:2110.02861). A code stands for a value of the
dynamic map: a decade, chosen by how many leading bits are zero, and within the decade as many equally wide intervals as
the bits that are left can tell apart; the value is the middle of the interval. So large values have a fine grid, and
values a million times smaller than the largest of their block still have one.

In one thing this departs from the paper: what is positive never becomes zero in the unsigned map, but its least value.
A second moment of zero would divide by nothing but epsilon (Li et al., "Memory Efficient Optimizers with 4-bit States",
arXiv:2309.01507, show what that does to training).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

BLOCK = 256
NUM_DECADES = 7


@functools.cache
def dynamic_map(signed: bool, device: torch.device | str = "cpu") -> torch.Tensor:
    """The 256 values in ascending order, float32: in [-1, 1] if signed, else in [0, 1]."""
    values = [0.0, 1.0]
    for decade in range(NUM_DECADES):
        # A sign takes one bit of those that tell intervals apart.
        num_intervals = 2**decade if signed else 2 ** (decade + 1)
        width = 0.9 / num_intervals
        middles = [10.0 ** (decade - NUM_DECADES + 1) * (0.1 + (i + 0.5) * width) for i in range(num_intervals)]
        values += middles
        if signed:
            values += [-middle for middle in middles]
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@functools.cache
def borders(signed: bool, device: torch.device | str = "cpu") -> torch.Tensor:
    """float32 [255]: between which values a number is rounded to which code; on a border, to the lower."""
    table = dynamic_map(signed, device)
    return (table[1:] + table[:-1]) / 2


@dataclass(frozen=True, eq=False)
class Blockwise8:
    """A flat tensor of n numbers: codes uint8 [n], scales float32 [ceil(n / 256)], the largest magnitude of each block.

    The codes are of the signed map or the unsigned one (all numbers at least zero).
    """

    codes: torch.Tensor
    scales: torch.Tensor
    signed: bool

    @classmethod
    def zeros(cls, num: int, *, signed: bool, device: torch.device | str = "cpu") -> Blockwise8:
        zero = int((dynamic_map(signed) == 0).nonzero())
        codes = torch.full((num,), zero, dtype=torch.uint8, device=device)
        return cls(codes, torch.zeros(-(-num // BLOCK), device=device), signed)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def dequantize(self, first: int = 0, last: int | None = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The numbers from `first`, where a block begins, up to `last`."""
        codes = self.codes[first:last]
        scales = self.scales[first // BLOCK :].to(dtype).repeat_interleave(BLOCK)[: len(codes)]
        return dynamic_map(self.signed, self.codes.device).to(dtype)[codes.int()] * scales

    def write(self, values: torch.Tensor, first: int = 0) -> None:
        """Keep flat values, from `first`, where a block begins, on; they end with a block or with the tensor."""
        padded = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
        scales = padded.abs().amax(1)
        shares = padded / scales.where(scales > 0, 1)[:, None]
        codes = torch.bucketize(shares, borders(self.signed, values.device).to(values.dtype))
        if not self.signed:
            codes += (codes == 0) & (padded > 0)
        self.codes[first : first + len(values)] = codes.flatten()[: len(values)].to(torch.uint8)
        self.scales[first // BLOCK : first // BLOCK + len(scales)] = scales.to(self.scales.dtype)


Moment = torch.Tensor | Blockwise8
