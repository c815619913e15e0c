"""The random numbers of sampling: a function of seed and place, uniform, and the published generator's own."""

from __future__ import annotations

import statistics

from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.serve.sampling import _mix, uniform


@given(st.integers(-(2**70), 2**70), st.integers(0, 10**9))
def test_numbers_lie_in_the_half_open_unit_interval_and_repeat(seed: int, index: int) -> None:
    assert 0 <= uniform(seed, index) < 1
    assert uniform(seed, index) == uniform(seed, index)


def test_the_generator_is_splitmix64() -> None:
    """The first outputs for the state 1234567, as published with the reference implementation."""
    golden, state, outputs = 0x9E3779B97F4A7C15, 1234567, []
    for _ in range(3):
        state = (state + golden) % 2**64
        outputs.append(_mix(state))
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_numbers_are_uniform_along_a_request_and_across_seeds() -> None:
    along = [uniform(7, index) for index in range(10_000)]
    across = [uniform(seed, 0) for seed in range(10_000)]
    for numbers in (along, across):
        buckets = [0] * 20
        for number in numbers:
            buckets[int(number * 20)] += 1
        chi_square = sum((count - 500) ** 2 / 500 for count in buckets)
        assert chi_square < 43.8  # 99.9% of uniform samples with 19 degrees of freedom
    assert abs(statistics.correlation(along[:-1], along[1:])) < 0.04
    assert abs(statistics.correlation(along, across)) < 0.04
