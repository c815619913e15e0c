"""Mixtures: who is drawn how often, in an order that can be entered anywhere."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.data import shuffle
from callboard.actors.data.errors import NoSuchData
from callboard.actors.data.mixture import Mixture, Source, files_of, parse_sources
from callboard.actors.data.shuffle import key_of, permuted, uniform
from callboard.runtime.errors import UsageError

# What chi-square exceeds once in a million times, by degrees of freedom.
CHI_SQUARE = {1: 23.93, 2: 27.63, 9: 46.04, 23: 71.34}


def chi_square(observed: list[int], shares: list[float]) -> float:
    expected = np.array(shares) / sum(shares) * sum(observed)
    return float((((np.array(observed) - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("weights", [[0.7, 0.3], [5.0, 1.0, 2.0], None])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_data_sets_are_drawn_by_their_weights(weights: list[float] | None, seed: int) -> None:
    sizes = [100, 50, 70][: len(weights or [1, 1, 1])]
    drawn = [one.part for one in islice(Mixture(sizes, weights, seed).samples(), 20_000)]
    observed = [drawn.count(part) for part in range(len(sizes))]
    shares = weights or [float(size) for size in sizes]
    assert chi_square(observed, shares) < CHI_SQUARE[len(sizes) - 1]
    skewed = [shares[0] * 1.1, *shares[1:]]
    assert chi_square(observed, skewed) > CHI_SQUARE[len(sizes) - 1], "the test would notice a wrong weight"


def test_one_draw_says_nothing_of_the_next() -> None:
    drawn = [one.part for one in islice(Mixture([10, 10], [0.5, 0.5], 3).samples(), 20_000)]
    pairs = [0] * 4
    for before, after in pairwise(drawn):
        pairs[2 * before + after] += 1
    assert chi_square(pairs, [1.0] * 4) < 30


@given(st.lists(st.integers(1, 30), min_size=1, max_size=4), st.integers(0, 5), st.integers(0, 1000))
def test_an_order_entered_anywhere_goes_on_the_same(sizes: list[int], seed: int, start: int) -> None:
    whole = list(islice(Mixture(sizes, None, seed).samples(), start + 20))
    assert list(islice(Mixture(sizes, None, seed).samples(start), 20)) == whole[start:]


def test_every_sample_comes_once_in_a_pass_and_each_pass_has_its_own_order() -> None:
    drawn = [one.sample for one in islice(Mixture([40, 60], [0.4, 0.6], 7).samples(), 1000) if one.part == 0]
    passes = [drawn[at : at + 40] for at in range(0, 320, 40)]
    assert all(sorted(one) == list(range(40)) for one in passes)
    assert len({tuple(one) for one in passes}) == len(passes)
    assert list(range(40)) not in passes


def test_another_seed_is_another_order() -> None:
    orders = {tuple(islice(Mixture([9, 9], [1, 1], seed).samples(), 50)) for seed in range(20)}
    assert len(orders) == 20


def test_the_order_stays_what_it_was() -> None:
    """A run that goes on after an upgrade must not see other samples."""
    assert list(islice(Mixture([3, 2], [0.7, 0.3], 1).samples(), 12)) == ORDER
    assert [permuted(index, 10**9, 7) for index in range(3)] == [331409930, 862576148, 724468982]


# (part, sample)
ORDER = [(0, 1), (0, 2), (0, 0), (0, 1), (0, 0), (1, 0), (1, 1), (0, 2), (0, 0), (0, 2), (1, 0), (0, 1)]


@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.booleans())
def test_a_permutation_takes_each_number_to_another(size: int, key: int, is_large: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffle, "SORTED_BELOW", 0 if is_large else size + 1)
        assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


def test_numbers_of_a_large_range_go_anywhere() -> None:
    """Where the first numbers of a range go, and how far apart neighbours land, by tenths of the range."""
    size = shuffle.SORTED_BELOW * 3
    places = [permuted(index, size, key_of(9)) for index in range(5000)]
    tenths = [0] * 10
    for place in places:
        tenths[place * 10 // size] += 1
    assert chi_square(tenths, [1.0] * 10) < CHI_SQUARE[9]
    apart = [0] * 10
    for before, after in pairwise(places):
        apart[(after - before) % size * 10 // size] += 1
    assert chi_square(apart, [1.0] * 10) < CHI_SQUARE[9]


def test_permutations_are_equally_likely() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        order = tuple(permuted(index, 4, key_of(seed)) for index in range(4))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert chi_square(list(seen.values()), [1.0] * 24) < CHI_SQUARE[23]


def test_numbers_are_uniform() -> None:
    counts, _ = np.histogram(uniform(1000, 50_000, key_of(5)), bins=10, range=(0, 1))
    assert chi_square(counts.tolist(), [1.0] * 10) < CHI_SQUARE[9]


@pytest.mark.parametrize(
    ("text", "sources"),
    [
        ("a.json", [("a.json", None)]),
        ("a.json:0.7,b.jsonl:0.3", [("a.json", 0.7), ("b.jsonl", 0.3)]),
        ("a.json, b.jsonl", [("a.json", None), ("b.jsonl", None)]),
        ("hf:org/name", [("hf:org/name", None)]),
        ("hf:org/name@v1:2,ms:org/x:1", [("hf:org/name@v1", 2.0), ("ms:org/x", 1.0)]),
    ],
)
def test_a_mixture_is_written_with_weights(text: str, sources: list[tuple[str, float | None]]) -> None:
    assert parse_sources(text) == tuple(Source(*source) for source in sources)


def test_a_path_with_commas_and_colons_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a:1,b:2"
    path.write_text("x")
    assert parse_sources(str(path)) == (Source(str(path)),)
    assert files_of(str(path)) == [path]


@pytest.mark.parametrize(
    ("text", "message"),
    [("a:0.5,b", "'b' has no weight"), ("a:0,b:1", "weight of 'a' is 0"), ("a:-1,b:1", "is -1"), ("a:nan,b:1", "nan")],
)
def test_weights_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_sources(text)


def test_what_is_not_there_or_empty_is_no_part(tmp_path: Path) -> None:
    with pytest.raises(NoSuchData, match="is not there"):
        files_of(str(tmp_path / "none"))
    with pytest.raises(NoSuchData, match="is a folder"):
        files_of(str(tmp_path))
    for sizes in ([], [3, 0]):
        with pytest.raises(NoSuchData, match="no samples"):
            Mixture(sizes)
