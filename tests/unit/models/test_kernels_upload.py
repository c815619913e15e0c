"""Many tensors in one copy: each keeps its values and its shape, and begins at an aligned address."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels.upload import ALIGNMENT, pack, upload

SHAPES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3), min_size=1, max_size=6)


@given(shapes=SHAPES, dtype=st.sampled_from([torch.int64, torch.int32, torch.float64]))
@settings(deadline=None, max_examples=50)
def test_what_was_packed_is_all_there(shapes: list[list[int]], dtype: torch.dtype) -> None:
    tensors = [torch.randint(-9, 9, tuple(shape)).to(dtype) for shape in shapes]
    packed, starts = pack(tensors)
    for start, tensor in zip(starts, tensors, strict=True):
        assert torch.equal(packed[start : start + tensor.numel()].view(tensor.shape), tensor)
        assert start * dtype.itemsize % ALIGNMENT == 0
    elsewhere = upload(tensors, "meta")
    assert [part.shape for part in elsewhere] == [tensor.shape for tensor in tensors]
    assert {(part.device.type, part.dtype) for part in elsewhere} == {("meta", dtype)}


def test_tensors_that_do_not_lie_in_one_piece_arrive_in_order() -> None:
    columns = list(torch.arange(12.0).view(6, 2).T)
    packed, starts = pack(columns)
    assert packed[starts[1] :][:6].tolist() == [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]


def test_on_the_cpu_nothing_is_copied() -> None:
    tensors = [torch.zeros(2), torch.ones(3)]
    assert all(ours is theirs for ours, theirs in zip(upload(tensors, "cpu"), tensors, strict=True))


def test_types_are_not_mixed() -> None:
    with pytest.raises(ValueError, match=r"several types: torch.float32, torch.int64"):
        upload([torch.zeros(2), torch.zeros(2, dtype=torch.int64)], "meta")
