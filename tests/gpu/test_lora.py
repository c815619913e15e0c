"""Low-rank products against the reference in float64. Tolerance: the low side is kept in ten bits or more (tf32) where
inputs have ten or fewer, and the sum with y is rounded once to its type; both relative to terms of the size of ten."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from callboard.kernels import reference
from callboard.kernels.gpu import lora


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel leaves unwritten is NaN, or the largest whole number."""

    def poisoned(*shape: Any, **options: Any) -> torch.Tensor:
        x = torch.zeros(*shape, **options)
        return x.fill_(float("nan") if x.is_floating_point() else torch.iinfo(x.dtype).max)

    monkeypatch.setattr(torch, "empty", poisoned)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[actual.dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def matrices(
    num_rows: int, num_in: int, num_out: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    y, x = torch.randn(num_rows, num_out, device=device), torch.randn(num_rows, num_in, device=device)
    return y.to(dtype), x.to(dtype)


def adapters(
    ranks: list[int], num_in: int, num_out: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded with zeros to the largest rank."""
    a = torch.zeros(len(ranks), max(ranks), num_in, device=device)
    b = torch.zeros(len(ranks), num_out, max(ranks), device=device)
    for i, rank in enumerate(ranks):
        a[i, :rank] = torch.randn(rank, num_in, device=device) / num_in**0.5
        b[i, :, :rank] = torch.randn(num_out, rank, device=device)
    return a.to(dtype), b.to(dtype)


@pytest.mark.parametrize(
    ("num_rows", "num_in", "num_out", "ranks"),
    [
        (1, 16, 16, [1]),
        (5, 600, 130, [8, 3]),
        (17, 96, 40, [16, 4, 20, 1, 2]),
        (40, 1100, 64, [32, 64]),
        (3, 64, 200, [100, 5]),
        (0, 8, 8, [2]),
    ],
)
def test_each_row_has_its_own_adapter(
    num_rows: int, num_in: int, num_out: int, ranks: list[int], device: torch.device, dtype: torch.dtype
) -> None:
    y, x = matrices(num_rows, num_in, num_out, device, dtype)
    a, b = adapters(ranks, num_in, num_out, device, dtype)
    adapter_of_row = torch.randint(-1, len(ranks), (num_rows,), device=device)
    expected, before = y.double(), y.clone()
    reference.lora_multi(expected, x.double(), a.double(), b.double(), adapter_of_row)
    lora.lora_multi(y, x, a, b, adapter_of_row)
    assert_close(y, expected)
    assert torch.equal(y[adapter_of_row < 0], before[adapter_of_row < 0])


def test_rows_in_runs_and_32_bit_adapters(device: torch.device) -> None:
    """As a ragged batch has them: a prompt's rows together."""
    y, x = matrices(50, 64, 32, device, torch.float32)
    a, b = adapters([4, 4, 4], 64, 32, device, torch.float32)
    adapter_of_row = torch.tensor([2] * 20 + [-1] * 10 + [0] * 19 + [1], device=device, dtype=torch.int32)
    expected = y.double()
    reference.lora_multi(expected, x.double(), a.double(), b.double(), adapter_of_row)
    lora.lora_multi(y, x, a, b, adapter_of_row)
    assert_close(y, expected)


@pytest.mark.parametrize("rank", [1, 16, 24])
@pytest.mark.parametrize("kind", ["all", "slice", "index", "none"])
def test_one_adapter_on_some_rows(kind: str, rank: int, device: torch.device, dtype: torch.dtype) -> None:
    y, x = matrices(21, 70, 50, device, dtype)
    a, b = adapters([rank], 70, 50, device, dtype)
    rows = {
        "all": slice(None),
        "slice": slice(3, 20),
        "index": torch.randperm(21, device=device)[:18],
        "none": torch.empty(0, dtype=torch.int64, device=device),
    }[kind]
    expected = y.double()
    reference.lora(expected, x.double(), a[0].double(), b[0].double(), rows)
    lora.lora(y, x, a[0], b[0], rows)
    assert_close(y, expected)


def test_a_fused_products_columns_are_added_to_where_they_lie(device: torch.device) -> None:
    fused = torch.full((6, 100), torch.nan, device=device)
    fused[:, 10:50] = torch.randn(6, 40, device=device)
    y, x = fused[:, 10:50], torch.randn(6, 30, device=device)
    a, b = adapters([4], 30, 40, device, torch.float32)
    expected = y.double()
    reference.lora(expected, x.double(), a[0].double(), b[0].double(), slice(None))
    lora.lora(y, x, a[0], b[0], slice(None))
    assert_close(fused[:, 10:50], expected)
    assert fused[:, 50:].isnan().all()
    assert fused[:, :10].isnan().all()


def test_what_does_not_fit_is_named(device: torch.device) -> None:
    y, x = matrices(3, 8, 6, device, torch.float32)
    a, b = adapters([2, 2], 8, 6, device, torch.float32)
    index = torch.zeros(3, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="a takes 7 inputs"):
        lora.lora_multi(y, x, a[:, :, :7], b, index)
    with pytest.raises(ValueError, match="b has the shape"):
        lora.lora_multi(y, x, a, b[:1], index)
    with pytest.raises(ValueError, match="a_stack is float16"):
        lora.lora_multi(y, x, a.half(), b, index)
    with pytest.raises(ValueError, match="adapter_of_row has 2 values"):
        lora.lora_multi(y, x, a, b, index[:2])
    with pytest.raises(ValueError, match="y has 2 rows"):
        lora.lora(y[:2], x, a[0], b[0], slice(None))
    with pytest.raises(ValueError, match="at most 256"):
        lora.lora(y, x, torch.zeros(300, 8, device=device), torch.zeros(6, 300, device=device), slice(None))
