"""Metrics, their errors and differences against values worked out by hand; answers in words and numbers."""

from __future__ import annotations

import math
from itertools import product

import pytest

from callboard.actors.evaluate.answers import exact_match, last_number, normalised, token_f1
from callboard.actors.evaluate.statistics import differences, mcnemar, metrics_of
from callboard.schemas.evaluate import EvaluatedSample, SampleScore


def samples(metric: str, *scores: float | tuple[float, float]) -> list[EvaluatedSample]:
    return [
        EvaluatedSample(
            index=index,
            line=index + 1,
            prompt="",
            scores=(SampleScore(metric, *score) if isinstance(score, tuple) else SampleScore(metric, score),),
        )
        for index, score in enumerate(scores)
    ]


def test_the_error_of_a_share_is_that_of_a_mean() -> None:
    """3 of 4: the sample's variance is 4/3 * 3/16 = 1/4, so the mean's error is sqrt(1/4 / 4) = 1/4."""
    (acc,) = metrics_of(samples("acc", 1, 1, 0, 1))
    assert (acc.name, acc.value) == ("acc", 0.75)
    assert acc.error == pytest.approx(0.25)


def test_a_ratio_counts_a_sample_by_its_weight() -> None:
    """(2 + 9) / (1 + 3) = 2.75 nats a token; influences (2 - 2.75) * 2 / 4 and (9 - 8.25) * 2 / 4: the error is
    sqrt(2 * 0.375^2 / 2) = 0.375, and that of e to the power of it, by the delta method, e^2.75 times as large."""
    (bits,) = metrics_of(samples("bits_per_byte", (2.0, 1.0), (9.0, 3.0)))
    assert bits.value == pytest.approx(2.75)
    assert bits.error == pytest.approx(0.375)
    (perplexity,) = metrics_of(samples("token_perplexity", (2.0, 1.0), (9.0, 3.0)))
    assert perplexity.value == pytest.approx(math.exp(2.75))
    assert perplexity.error == pytest.approx(0.375 * math.exp(2.75))


def test_one_sample_has_no_error() -> None:
    (acc,) = metrics_of(samples("acc", 1))
    assert (acc.value, acc.error) == (1.0, None)
    (difference,) = differences("m", samples("acc", 1), samples("acc", 0))
    assert (difference.difference, difference.low, difference.high, difference.p_value) == (1.0, None, None, 1.0)


def test_a_difference_is_paired_sample_by_sample() -> None:
    """Differences 1, 0, 0, -1, 1: mean 0.2, variance (3 - 5 * 0.04) / 4 = 0.7, error sqrt(0.7 / 5)."""
    ours, first = samples("acc", 1, 1, 0, 0, 1), samples("acc", 0, 1, 0, 1, 0)
    (found,) = differences("m", ours, first)
    assert found.difference == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 1.959964 * math.sqrt(0.14), abs=1e-6)
    assert found.high == pytest.approx(0.2 + 1.959964 * math.sqrt(0.14), abs=1e-6)
    assert found.p_value == 1.0  # 2 for one, 1 for the other: as even as three can be


def test_a_model_does_not_differ_from_itself() -> None:
    same = samples("token_perplexity", (2.0, 1.0), (9.0, 3.0), (5.0, 2.0))
    (found,) = differences("m", same, same)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, None)


def test_mcnemar_is_the_sum_over_all_ways_that_a_coin_can_fall() -> None:
    for ours, theirs in product(range(7), range(7)):
        tossed = ours + theirs
        falls = [sum(fall) for fall in product((0, 1), repeat=tossed)]
        far = abs(ours - theirs)
        expected = sum(abs(2 * heads - tossed) >= far for heads in falls) / len(falls)
        assert mcnemar(ours, theirs) == pytest.approx(expected)


def test_mcnemar_of_thousands_is_that_of_the_normal_distribution() -> None:
    far = (200 - 1) / math.sqrt(10_200)
    assert mcnemar(5_000, 5_200) == pytest.approx(math.erfc(far / math.sqrt(2)), rel=1e-2)
    assert mcnemar(0, 5_000) == 0.0 or mcnemar(0, 5_000) < 1e-300


def test_answers_are_compared_as_squad_does() -> None:
    assert normalised("  The  Cat, and a DOG! ") == "cat and dog"
    assert exact_match("the Eiffel Tower.", ("Paris", "Eiffel tower"))
    assert not exact_match("Eiffel", ("Eiffel Tower",))
    # Two of three said are right, two of two right ones were said: 2 * 2 / (3 + 2).
    assert token_f1("tall Eiffel Tower", ("Paris", "the Eiffel Tower")) == pytest.approx(0.8)
    assert token_f1("", ("Paris",)) == 0.0
    assert token_f1("the", ("a",)) == 1.0


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("1,234 and then 5.50", "5.5"),
        ("so\n#### 1,005 pens (not 7)", "1005"),
        ("#### -7", "-7"),
        ("it is 012.0", "12"),
        ("-0", "0"),
        (".50 of them", "0.5"),
        ("$3,000.", "3000"),
        ("none at all", None),
        ("7 of them ####", "7"),
    ],
)
def test_the_number_of_an_answer(answer: str, number: str | None) -> None:
    assert last_number(answer) == number
