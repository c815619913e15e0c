"""What families' variants ask of the simple ops: rotary embedding of part of a head or of neighbouring dimensions, the
gate product with gelu, and many adapters in one batch; the path of the CPU against the reference in float64."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.kernels import plain, reference

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
dtypes = st.sampled_from(list(TOLERANCE))
seeds = st.integers(0, 2**32)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[actual.dtype]
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


@settings(max_examples=40)
@given(st.integers(0, 9), st.sampled_from([(2, 1), (8, 2), (80, 16), (64, 32)]), st.booleans(), dtypes, seeds)
def test_rotary_of_part_of_a_head_and_of_neighbours(
    num_tokens: int, sizes: tuple[int, int], interleaved: bool, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    head_dim, num_pairs = sizes
    q, k = torch.randn(num_tokens, 3, head_dim).to(dtype), torch.randn(num_tokens, 1, head_dim).to(dtype)
    angles = torch.randn(num_tokens, num_pairs).double()
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    expected = reference.rotary(q.double(), k.double(), cos.double(), sin.double(), interleaved)
    for actual, wanted in zip(plain.rotary(q, k, cos, sin, interleaved), expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, wanted)


def test_rotary_is_a_turn_of_complex_numbers() -> None:
    """The reference itself, both layouts, and that what does not turn stays."""
    x = torch.randn(5, 2, 12, dtype=torch.float64)
    angles = torch.randn(5, 4, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None]
    halves, _ = reference.rotary(x, x, angles.cos(), angles.sin())
    turned = torch.complex(x[..., :4], x[..., 4:8]) * turn
    torch.testing.assert_close(halves, torch.cat([turned.real, turned.imag, x[..., 8:]], -1))
    neighbours, _ = reference.rotary(x, x, angles.cos(), angles.sin(), True)
    turned = torch.view_as_complex(x[..., :8].unflatten(-1, (4, 2)).contiguous()) * turn
    torch.testing.assert_close(neighbours, torch.cat([torch.view_as_real(turned).flatten(-2), x[..., 8:]], -1))


def test_angles_in_float32_turn_values_of_half_the_size() -> None:
    q = torch.randn(3, 2, 8).bfloat16()
    angles = torch.randn(3, 4)
    turned, _ = plain.rotary(q, q, angles.cos(), angles.sin())
    assert turned.dtype == torch.bfloat16
    wide = angles.double()
    assert_close(turned, reference.rotary(q.double(), q.double(), wide.cos(), wide.sin())[0])


@settings(max_examples=20)
@given(st.integers(0, 9), st.integers(0, 40), dtypes, seeds)
def test_the_gate_product_with_gelu(num_tokens: int, intermediate: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(num_tokens, 2 * intermediate).to(dtype)
    assert_close(plain.gelu_mul(x), reference.gelu_mul(x.double()))


@settings(max_examples=30)
@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 9), dtypes, seeds)
def test_each_row_has_its_own_adapter(num_rows: int, num: int, rank: int, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    y, x = torch.randn(num_rows, 7).to(dtype), torch.randn(num_rows, 10).to(dtype)
    a, b = torch.randn(num, rank, 10).to(dtype) / 4, torch.randn(num, 7, rank).to(dtype) / 4
    adapter_of_row = torch.randint(-1, num, (num_rows,))
    expected, before = y.double(), y.clone()
    for row, adapter in enumerate(adapter_of_row.tolist()):
        if adapter >= 0:
            expected[row] += b[adapter].double() @ (a[adapter].double() @ x[row].double())
    wide = y.double()
    reference.lora_multi(wide, x.double(), a.double(), b.double(), adapter_of_row)
    torch.testing.assert_close(wide, expected)
    plain.lora_multi(y, x, a, b, adapter_of_row)
    assert_close(y, expected)
    assert torch.equal(y[adapter_of_row < 0], before[adapter_of_row < 0])
