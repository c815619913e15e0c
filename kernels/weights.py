"""Weight matrices as products read them: a format, and for the native kernels a packed layout (native/weights.h)."""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Sequence

import torch

from . import native
from .grouped import Q4_1_GROUP, GroupedInt4, to_q4_1
from .memory import Arena

PANEL = 32


class WeightFormat(enum.StrEnum):
    """How a weight is kept.

    INT8: a scale for each output; activations in int8, with a scale for 32 inputs. INT4: groups of 32 along the input,
    each with a scale and a minimum; activations as for INT8. NF4: the 16 quantiles of QLoRA, groups of 64 with their
    largest magnitude; activations in bfloat16.
    """

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"

    @property
    def code(self) -> int:
        return list(WeightFormat).index(self)


FOUR_BITS = (WeightFormat.INT4, WeightFormat.NF4)


class Finish(enum.IntEnum):
    """What becomes of a product: it is stored, added, or (gates and their factors in turns of 16) multiplied."""

    STORE = 0
    ADD = 1
    SILU_MUL = 2


class PackedWeight:
    """A matrix [num_out, num_in] in `format`, filled row by row with `fill`. CPU, native kernels.

    `arena`: where it lies, together with the other weights of its model.
    """

    def __init__(
        self, num_out: int, num_in: int, format: WeightFormat, *, has_bias: bool = False, arena: Arena | None = None
    ) -> None:
        self.num_out = num_out
        self.num_in = num_in
        self.format = format
        library = native.kernels()
        num_bytes = library.cb_weight_bytes(format.code, num_out, num_in)
        self.data = torch.zeros(num_bytes, dtype=torch.uint8) if arena is None else arena.take(num_bytes)
        self.bias = torch.zeros(-(-num_out // PANEL) * PANEL) if has_bias else None
        self.order: torch.Tensor | None = None  # int32 [num_in]: column i multiplies input order[i]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.data, self.bias, self.order) if part is not None)

    def set_order(self, order: torch.Tensor) -> None:
        """Column i of what is filled in multiplies input order[i] (int64 [num_in], a permutation)."""
        if not torch.equal(order.sort().values, torch.arange(self.num_in)):
            raise ValueError(f"order is no permutation of {self.num_in} inputs")
        self.order = order.to(torch.int32).contiguous()

    def fill(self, rows: torch.Tensor, places: torch.Tensor | None = None) -> None:
        """Quantize `rows` [count, num_in] into the rows `places` (int64 [count]; None: the first ones)."""
        rows = rows.to(torch.float32).contiguous()
        places = self._places(places, rows.shape[0], rows.shape[1])
        native.kernels().cb_pack(
            self.format.code,
            self.num_out,
            self.num_in,
            rows.data_ptr(),
            places.data_ptr(),
            len(rows),
            self.data.data_ptr(),
        )

    def fill_grouped(self, weight: GroupedInt4, places: torch.Tensor | None = None) -> None:
        """Its rows as they are, in INT4; its order is `set_order`'s business.

        Codes stay, and scales where half can hold them; what is added to a group is rounded to half: see `to_q4_1`.
        ValueError for groups that are no multiple of 32, which INT4 does not have.
        """
        if self.format is not WeightFormat.INT4 or weight.group_size % Q4_1_GROUP:
            raise ValueError(f"groups of {weight.group_size} inputs do not fit a weight in {self.format}")
        codes, scales, minimums = to_q4_1(GroupedInt4(weight.codes, weight.scales, weight.zeros))
        self._fill_codes(codes, scales, minimums.contiguous(), places)

    def fill_int8(self, codes: torch.Tensor, scales: torch.Tensor, places: torch.Tensor | None = None) -> None:
        """Rows that are in INT8 already, exactly: codes int8 [count, num_in], scales [count]."""
        if self.format is not WeightFormat.INT8 or codes.dtype != torch.int8:
            raise ValueError(f"codes in {codes.dtype} do not fit a weight in {self.format}")
        self._fill_codes(codes, scales.float().reshape(-1), None, places)

    def _fill_codes(
        self,
        codes: torch.Tensor,
        scales: torch.Tensor,
        minimums: torch.Tensor | None,
        places: torch.Tensor | None,
    ) -> None:
        num_in = codes.shape[1] * (2 if self.format is WeightFormat.INT4 else 1)
        places = self._places(places, codes.shape[0], num_in)
        codes, scales = codes.contiguous(), scales.contiguous()
        if len(scales) != len(codes):
            raise ValueError(f"scales {tuple(scales.shape)} do not go with codes {tuple(codes.shape)}")
        native.kernels().cb_pack_codes(
            self.format.code,
            self.num_out,
            self.num_in,
            codes.data_ptr(),
            scales.data_ptr(),
            None if minimums is None else minimums.data_ptr(),
            places.data_ptr(),
            len(places),
            self.data.data_ptr(),
        )

    def _places(self, places: torch.Tensor | None, count: int, num_in: int) -> torch.Tensor:
        """Where `count` rows of `num_in` go, int64 and contiguous. ValueError where they do not fit."""
        if places is None:
            places = torch.arange(count)
        if num_in != self.num_in or places.shape != (count,):
            raise ValueError(f"rows {(count, num_in)} do not fit a weight of {self.num_out} x {self.num_in}")
        if len(places) and not 0 <= int(places.min()) <= int(places.max()) < self.num_out:
            raise ValueError(
                f"rows {int(places.min())} to {int(places.max())} do not fit a weight of {self.num_out} rows"
            )
        return places.to(torch.int64).contiguous()

    def rows(self, which: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """The rows `which` as the products see them, float32 [len(which), num_in], in the order of the inputs."""
        index = torch.as_tensor(which, dtype=torch.int64).contiguous()
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < self.num_out:
            raise ValueError(
                f"a weight of {self.num_out} rows has no row {int(index.max() if index.min() >= 0 else index.min())}"
            )
        out = torch.empty(len(index), self.num_in)
        weight = self.c_struct()
        native.kernels().cb_unpack(ctypes.addressof(weight), index.data_ptr(), len(index), out.data_ptr())
        return out

    def c_struct(self) -> native.CWeight:
        """Points into this object's tensors: keep it no longer than this object."""
        return native.CWeight(
            self.format.code,
            self.num_out,
            self.num_in,
            0,
            self.data.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            None if self.order is None else self.order.data_ptr(),
        )


class NativeEngine:
    """The threads and the work space of native computation. One call at a time."""

    def __init__(self, num_threads: int) -> None:
        self._library = native.kernels()
        self.num_threads = num_threads
        self._handle: int | None = self._library.cb_engine_new(num_threads)

    @property
    def handle(self) -> int:
        """What the library knows it by, as long as this object lives."""
        assert self._handle is not None
        return self._handle

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.cb_engine_free(self._handle)
            self._handle = None

    def linear(
        self, x: torch.Tensor, weight: PackedWeight, out: torch.Tensor | None = None, finish: Finish = Finish.STORE
    ) -> torch.Tensor:
        """x float32 [num_rows, num_in] -> x W^T + bias, float32 [num_rows, num_out] (half of it for SILU_MUL).

        Each row's result is the same bit for bit whatever other rows there are.
        """
        if x.shape[1] != weight.num_in or x.dtype != torch.float32:
            raise ValueError(f"{x.dtype} {tuple(x.shape)} does not go with {weight.num_out} x {weight.num_in}")
        if finish is Finish.SILU_MUL and weight.num_out % PANEL:
            raise ValueError(f"{weight.num_out} rows are no gates and factors in turns of 16")
        x = x.contiguous()
        width = weight.num_out // 2 if finish is Finish.SILU_MUL else weight.num_out
        if out is None:
            out = torch.zeros(len(x), width) if finish is Finish.ADD else torch.empty(len(x), width)
        if out.shape != (len(x), width) or not out.is_contiguous() or out.dtype != torch.float32:
            raise ValueError(f"the result needs a contiguous float32 tensor of {(len(x), width)}")
        struct = weight.c_struct()
        self._library.cb_linear(
            self._handle, ctypes.addressof(struct), x.data_ptr(), len(x), out.data_ptr(), width, int(finish)
        )
        return out

    def likeliest(self, x: torch.Tensor, weight: PackedWeight) -> torch.Tensor:
        """x float32 [num_rows, num_in] -> `ops.greedy` of x W^T + bias, int64 [num_rows], without ever keeping that."""
        if x.shape[1] != weight.num_in or x.dtype != torch.float32:
            raise ValueError(f"{x.dtype} {tuple(x.shape)} does not go with {weight.num_out} x {weight.num_in}")
        x = x.contiguous()
        tokens = torch.empty(len(x), dtype=torch.int64)
        struct = weight.c_struct()
        self._library.cb_likeliest(self._handle, ctypes.addressof(struct), x.data_ptr(), len(x), tokens.data_ptr())
        return tokens

    def forward(self, model: native.CModel, batch: native.CBatch, out: torch.Tensor) -> None:
        """One forward pass; `out` float32 [num_tokens, hidden] gets the normed hidden states."""
        self._library.cb_forward(self._handle, ctypes.addressof(model), ctypes.addressof(batch), out.data_ptr())
