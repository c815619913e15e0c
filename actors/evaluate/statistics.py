"""From samples to metrics: values, standard errors, and differences between models on the same samples.

Every metric is a ratio of sums over samples, r = sum(v) / sum(w) (a mean, where all weights are 1), or exp(r). Its
standard error is that of the mean of z = (v - r w) n / sum(w), the samples' influences on it (the delta method). Of a
difference it is that of the mean of the differences of both models' influences, sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ...schemas.evaluate import EvaluatedSample, MetricDifference, MetricValue, SampleScore

# How far a normal variable strays with a probability of 95%, in standard deviations.
_SPREAD_95 = NormalDist().inv_cdf(0.975)
# e to the power of more is no number that a float holds.
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Metric:
    """`is_right`: a sample scores 1 or 0. `exponential`: the metric is e to the power of the ratio."""

    name: str
    is_right: bool = False
    exponential: bool = False


METRICS = {
    one.name: one
    for one in (
        Metric("acc", is_right=True),
        Metric("acc_norm", is_right=True),
        Metric("exact_match", is_right=True),
        Metric("f1"),
        Metric("word_perplexity", exponential=True),
        Metric("token_perplexity", exponential=True),
        Metric("bits_per_byte"),
    )
}


@dataclass(frozen=True)
class _Estimate:
    value: float
    influences: list[float]


def metrics_of(samples: Sequence[EvaluatedSample]) -> tuple[MetricValue, ...]:
    """Of samples that count, which all have scores of the same metrics."""
    return tuple(
        MetricValue(name, (found := _estimate(METRICS[name], scores)).value, _error(found.influences))
        for name, scores in _by_metric(samples).items()
    )


def differences(
    model: str, ours: Sequence[EvaluatedSample], first: Sequence[EvaluatedSample]
) -> tuple[MetricDifference, ...]:
    """Of the same samples in the same order."""
    theirs = _by_metric(first)
    return tuple(_difference(model, METRICS[name], scores, theirs[name]) for name, scores in _by_metric(ours).items())


def mcnemar(only_ours: int, only_theirs: int) -> float:
    """The two-sided exact p-value of so many samples being right for one model alone (McNemar 1947): how likely a fair
    coin is to be as far from even."""
    tossed = only_ours + only_theirs
    tail, ways = 0, 1
    for heads in range(min(only_ours, only_theirs) + 1):
        tail += ways
        ways = ways * (tossed - heads) // (heads + 1)
    return min(1.0, 2 * tail / (1 << tossed))


def _difference(
    model: str, metric: Metric, ours: Sequence[SampleScore], theirs: Sequence[SampleScore]
) -> MetricDifference:
    one, two = _estimate(metric, ours), _estimate(metric, theirs)
    difference = one.value - two.value
    error = _error([mine - other for mine, other in zip(one.influences, two.influences, strict=True)])
    p_value = None
    if metric.is_right:
        pairs = [(mine.value > 0, other.value > 0) for mine, other in zip(ours, theirs, strict=True)]
        p_value = mcnemar(pairs.count((True, False)), pairs.count((False, True)))
    return MetricDifference(
        model=model,
        metric=metric.name,
        difference=difference,
        low=None if error is None else difference - _SPREAD_95 * error,
        high=None if error is None else difference + _SPREAD_95 * error,
        p_value=p_value,
    )


def _by_metric(samples: Sequence[EvaluatedSample]) -> dict[str, list[SampleScore]]:
    found: dict[str, list[SampleScore]] = {}
    for sample in samples:
        for score in sample.scores:
            found.setdefault(score.metric, []).append(score)
    return found


def _estimate(metric: Metric, scores: Sequence[SampleScore]) -> _Estimate:
    total = math.fsum(score.weight for score in scores)
    ratio = math.fsum(score.value for score in scores) / total
    value = math.exp(min(ratio, _LARGEST_EXPONENT)) if metric.exponential else ratio
    scale = len(scores) / total * (value if metric.exponential else 1.0)
    return _Estimate(value, [(score.value - ratio * score.weight) * scale for score in scores])


def _error(influences: Sequence[float]) -> float | None:
    """Of the mean of these, whose own mean is 0."""
    count = len(influences)
    if count < 2:
        return None
    return math.sqrt(math.fsum(one * one for one in influences) / (count * (count - 1)))
