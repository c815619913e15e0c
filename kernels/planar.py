"""Four-bit weights as Triton kernels read them: repacked once when a weight goes to a card.

A thread loads 16 bytes, four words of eight codes, and should find the inputs that belong to them with few loads.
So columns are taken in chunks of 8 C, and bits 4 i to 4 i + 3 of the chunk's word c hold column i C + c of it:

    word          0      1     ...   C - 1
    bits  0-3     0      1     ...   C - 1      <- these inputs lie side by side,
    bits  4-7     C     C + 1  ...  2 C - 1     <- and these
    ...
    bits 28-31   7 C      ...       8 C - 1

A chunk lies within a group, so a word has one scale. Rows are padded with zeros to a multiple of 16 words.
"""

from __future__ import annotations

import enum

import torch
from torch import nn

from .grouped import SYMMETRIC_ZERO, GroupedInt4, unpack_nibbles
from .nf4 import BLOCK, Nf4Weight, dynamic_map
from .quantized import GROUP, GROUP_NF4, NF4_VALUES, SLICE, QuantizedWeight
from .weights import WeightFormat

CODES_PER_WORD = 8
CHUNKS = (16, 8, 4, 2)
WORD_MULTIPLE = 16


class Offsets(enum.IntEnum):
    """What a group has beside its scale."""

    SYMMETRIC = 0  # nothing: zero is code 8
    ZEROS = 1  # the code that stands for zero
    MINIMUMS = 2  # the value that code 0 stands for


class PlanarInt4(nn.Module):
    """A matrix [num_out, num_in] of `GroupedInt4` or of `QuantizedWeight` in INT4.

    words int32 [num_out, num_words]; scales and offsets floating [num_out, num_groups]; order int64 [num_in] or None.
    """

    words: torch.Tensor
    scales: torch.Tensor
    offsets: torch.Tensor | None
    order: torch.Tensor | None

    def __init__(
        self,
        words: torch.Tensor,
        scales: torch.Tensor,
        offsets: torch.Tensor | None,
        kind: Offsets,
        *,
        num_in: int,
        group_size: int,
        order: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.num_in = num_in
        self.chunk = chunk_of(group_size, scales.shape[1])
        # A single group has no end that a word could be beyond.
        self.group_words = group_size // CODES_PER_WORD if scales.shape[1] > 1 else 0
        self.register_buffer("words", words)
        self.register_buffer("scales", scales)
        self.register_buffer("offsets", offsets)
        self.register_buffer("order", order)

    @classmethod
    def from_grouped(cls, weight: GroupedInt4) -> PlanarInt4:
        """ValueError where there are several groups whose size is no multiple of 16."""
        symmetric = bool((weight.zeros == SYMMETRIC_ZERO).all())
        return cls(
            pack(weight.codes, chunk_of(weight.group_size, weight.scales.shape[1])),
            weight.scales.contiguous(),
            None if symmetric else weight.zeros.contiguous(),
            Offsets.SYMMETRIC if symmetric else Offsets.ZEROS,
            num_in=weight.shape[1],
            group_size=weight.group_size,
            order=weight.order,
        )

    @classmethod
    def from_q4_1(cls, weight: QuantizedWeight) -> PlanarInt4:
        """A weight in INT4."""
        if weight.format is not WeightFormat.INT4 or weight.scales is None or weight.minimums is None:
            raise ValueError(f"a weight in {weight.format} has no four bits with scales and minimums")
        return cls(
            pack(weight.codes, chunk_of(GROUP, weight.scales.shape[1])),
            weight.scales,
            weight.minimums,
            Offsets.MINIMUMS,
            num_in=weight.num_in,
            group_size=GROUP,
        )

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.num_in

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def rows(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes of the rows `first` to `last` - 1 stand for, columns in the order of the inputs."""
        wide = torch.promote_types(dtype, torch.float32)
        codes = unpack(self.words[first:last], self.chunk)[:, : self.num_in].to(wide)
        scales = self.scales[first:last].to(wide)
        if self.offsets is None:
            minimums = -SYMMETRIC_ZERO * scales
        else:
            offsets = self.offsets[first:last].to(wide)
            minimums = offsets if self.kind is Offsets.MINIMUMS else -offsets * scales
        columns = torch.arange(self.num_in, device=codes.device)
        groups = columns // (self.group_words * CODES_PER_WORD) if self.group_words else torch.zeros_like(columns)
        values = (codes * scales[:, groups] + minimums[:, groups]).to(dtype)
        return values if self.order is None else torch.empty_like(values).index_copy_(1, self.order, values)


class PlanarNf4(nn.Module):
    """A matrix [num_out, num_in] of `Nf4Weight` or of `QuantizedWeight` in NF4.

    words int32 [num_out, num_words], chunks of a block each; values float32 [16], what a code stands for. absmax
    [num_out, num_blocks]: floating, or uint8 with a second quantization: dynamic_map float32 [256], nested_absmax
    float32 and offset float32 [1] as in `Nf4Weight`.
    """

    words: torch.Tensor
    values: torch.Tensor
    absmax: torch.Tensor
    dynamic_map: torch.Tensor | None
    nested_absmax: torch.Tensor | None
    offset: torch.Tensor | None

    chunk = BLOCK // CODES_PER_WORD

    def __init__(
        self,
        words: torch.Tensor,
        values: torch.Tensor,
        absmax: torch.Tensor,
        *,
        num_in: int,
        dynamic_map: torch.Tensor | None = None,
        nested_absmax: torch.Tensor | None = None,
        offset: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_in = num_in
        self.register_buffer("words", words)
        self.register_buffer("values", values)
        self.register_buffer("absmax", absmax)
        self.register_buffer("dynamic_map", dynamic_map)
        self.register_buffer("nested_absmax", nested_absmax)
        self.register_buffer("offset", offset)

    @classmethod
    def from_nf4(cls, weight: Nf4Weight) -> PlanarNf4:
        device = weight.codes.device
        return cls(
            pack(weight.codes, cls.chunk, high_first=True),
            torch.tensor(NF4_VALUES, device=device),
            weight.absmax.view(len(weight.codes), -1),
            num_in=weight.shape[1],
            dynamic_map=dynamic_map().to(device),
            nested_absmax=weight.nested_absmax,
            offset=weight.offset.reshape(1),
        )

    @classmethod
    def from_quantized(cls, weight: QuantizedWeight) -> PlanarNf4:
        """A weight in NF4, whose values are rounded to bfloat16."""
        if weight.format is not WeightFormat.NF4 or weight.scales is None:
            raise ValueError(f"a weight in {weight.format} has no codes of NF4")
        assert GROUP_NF4 == BLOCK
        values = torch.tensor(NF4_VALUES, device=weight.codes.device).bfloat16().float()
        return cls(pack(weight.codes, cls.chunk), values, weight.scales, num_in=weight.num_in)

    @property
    def shape(self) -> tuple[int, int]:
        return self.words.shape[0], self.num_in

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def rows(self, first: int, last: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """What the codes of the rows `first` to `last` - 1 stand for; products are rounded to float32."""
        codes = unpack(self.words[first:last], self.chunk)[:, : self.num_in]
        absmax = self.absmax[first:last]
        if self.nested_absmax is not None and self.dynamic_map is not None and self.offset is not None:
            blocks = torch.arange(absmax.numel(), device=codes.device).view_as(absmax) + first * absmax.shape[1]
            absmax = self.dynamic_map[absmax.int()] * self.nested_absmax[blocks // 256] + self.offset
        columns = torch.arange(self.num_in, device=codes.device) // BLOCK
        return (self.values[codes.int()] * absmax.float()[:, columns]).to(dtype)


def chunk_of(group_size: int, num_groups: int) -> int:
    """C for groups of that size. ValueError where no chunk lies within a group."""
    if num_groups == 1:
        return CHUNKS[0]
    for chunk in CHUNKS:
        if group_size % (CODES_PER_WORD * chunk) == 0:
            return chunk
    raise ValueError(f"groups of {group_size} inputs: this kernel takes multiples of {CODES_PER_WORD * CHUNKS[-1]}")


def pack(codes: torch.Tensor, chunk: int, *, high_first: bool = False) -> torch.Tensor:
    """Two codes in a byte, uint8 [num_out, num_in / 2] -> int32 [num_out, num_words], some rows at a time."""
    num_in = 2 * codes.shape[1]
    num_words = -(-num_in // (CODES_PER_WORD * WORD_MULTIPLE)) * WORD_MULTIPLE
    words = torch.zeros(len(codes), num_words, dtype=torch.int32, device=codes.device)
    step = max(1, SLICE // max(1, num_in))
    for first in range(0, len(codes), step):
        some = codes[first : first + step]
        if high_first:
            some = some << 4 | some >> 4
        natural = some.new_zeros(len(some), num_words * CODES_PER_WORD)
        natural[:, :num_in] = unpack_nibbles(some)
        planes = natural.view(len(some), -1, CODES_PER_WORD, chunk).int()
        target = words[first : first + step].view(len(some), -1, chunk)
        for i in range(CODES_PER_WORD):
            target |= planes[:, :, i] << 4 * i
    return words


def unpack(words: torch.Tensor, chunk: int) -> torch.Tensor:
    """The codes in the order of their columns, int32 [num_out, 8 num_words]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=words.device)
    return (words.view(len(words), -1, 1, chunk) >> shifts[:, None] & 0x0F).flatten(1)
