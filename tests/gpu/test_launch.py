"""What is checked before a kernel is launched."""

from __future__ import annotations

import pytest
import torch

from callboard.kernels.gpu import launch


def test_kernels_run_on_this_device(device: torch.device) -> None:
    assert launch.unavailable(device) == ""


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 3, dtype=torch.int32), "x is int32; this kernel takes float16, float32"),
        (torch.ones(2), r"x has the shape \(2,\); 2 dimensions"),
        (torch.ones(3, 2).T, "strides"),
        (torch.ones(2, 3, device="meta"), "x is on meta, but the others on cpu"),
    ],
)
def test_what_a_kernel_does_not_take_is_named(tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launch.check("x", tensor, dtypes=(torch.float32, torch.float16), ndim=2, like=torch.ones(1))
