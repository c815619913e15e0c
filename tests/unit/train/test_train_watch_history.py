"""A run's events become curves; smoothing and thinning do to a curve what they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched_runs import progress, run_events, write_events

from callboard.actors.train.errors import NoSuchJob
from callboard.actors.train.history import JobHistory, read_history
from callboard.runtime.curves import smoothed, thinned
from callboard.schemas.train import TrainCheckpointed, TrainEvaluated, TrainNote, TrainSampled

CURVES = st.lists(st.floats(-1e6, 1e6), max_size=300).map(lambda ys: list(enumerate(ys, 1)))


def test_a_file_of_events_becomes_a_curve_of_each_figure(tmp_path: Path) -> None:
    events = [
        progress("a", 1, 3.0, metrics=(("accuracy", 0.5),)),
        TrainNote("a", 1, "two samples were left out"),
        progress("a", 2, 2.0, metrics=(("accuracy", 0.75),), mfu=0.4),
        TrainSampled("a", 2, "hello", "there"),
        TrainEvaluated("a", 2, 2.5, True),
        TrainCheckpointed("a", 2, "/checkpoints/step-00000002", 0.1),
    ]
    history = read_history("a", write_events(tmp_path / "events.jsonl", events))
    assert history.curve("loss") == [(1, 3.0), (2, 2.0)]
    assert history.curve("evaluation") == [(2, 2.5)]
    assert history.curve("accuracy") == [(1, 0.5), (2, 0.75)]
    assert history.curve("mfu") == [(1, 0.0), (2, 0.4)]
    assert history.curve("grad_norm") == [(1, 2.0), (2, 1.5)]
    assert history.curve("nothing") == []
    assert set(history.names) == {
        *("loss", "lr", "grad_norm", "tokens_per_s", "mfu", "memory_bytes"),
        *("accuracy", "evaluation"),
    }


def test_the_line_that_a_writer_was_killed_over_is_left_out(tmp_path: Path) -> None:
    events = run_events("a", 20)
    path = write_events(tmp_path / "events.jsonl", events, rest=b'\n{"type":"train.progress","job":"a","st')
    assert read_history("a", path).curve("loss") == JobHistory("a", events).curve("loss")
    assert read_history("a", path).last_step == 20


def test_a_job_without_events_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(NoSuchJob, match=r"events\.jsonl"):
        read_history("a", tmp_path / "events.jsonl")


def test_a_run_that_goes_on_from_a_checkpoint_replaces_what_it_does_again() -> None:
    first = [progress("a", step, 3.0 / step) for step in range(1, 8)]
    lost = [TrainEvaluated("a", 6, 9.0, False), progress("a", 7, 0.1, skipped="a spike")]
    again = [progress("a", step, 2.0 / step) for step in range(5, 7)]
    history = JobHistory("a", [*first[:5], TrainEvaluated("a", 4, 8.0, True), *first[5:6], *lost, *again])
    assert history.curve("loss") == [*((step, 3.0 / step) for step in range(1, 5)), (5, 0.4), (6, 1 / 3)]
    assert history.curve("evaluation") == [(4, 8.0)]
    assert history.skipped == {}
    assert history.last_step == 6


def test_a_step_without_a_number_is_no_point_but_is_known() -> None:
    events = [progress("a", 1, 3.0), progress("a", 2, math.nan, grad_norm=math.inf, skipped="the loss is no number")]
    history = JobHistory("a", [*events, progress("a", 3, 2.0)])
    assert history.curve("loss") == [(1, 3.0), (3, 2.0)]
    assert [step for step, _ in history.curve("grad_norm")] == [1, 3]
    assert [step for step, _ in history.curve("lr")] == [1, 2, 3]
    assert history.skipped == {2: "the loss is no number"}


@given(st.floats(-100, 100), st.integers(1, 40), st.floats(0, 0.999))
def test_smoothing_leaves_a_level_where_it_is_from_its_first_point_on(level: float, num: int, weight: float) -> None:
    curve = [(step, level) for step in range(num)]
    assert [step for step, _ in smoothed(curve, weight)] == list(range(num))
    assert all(value == pytest.approx(level, rel=1e-9, abs=1e-9) for _, value in smoothed(curve, weight))


@given(CURVES, st.floats(0, 0.99))
def test_smoothing_is_the_mean_with_weights_that_fall_by_a_factor(
    curve: list[tuple[float, float]], weight: float
) -> None:
    for index, (step, value) in enumerate(smoothed(curve, weight)):
        weights = [weight ** (index - i) for i in range(index + 1)]
        mean = math.fsum(w * y for w, (_, y) in zip(weights, curve, strict=False)) / math.fsum(weights)
        assert step == curve[index][0]
        assert value == pytest.approx(mean, rel=1e-9, abs=1e-5)
    assert smoothed(curve, 0) == curve


@pytest.mark.parametrize("weight", [-0.1, 1.0, math.nan])
def test_a_weight_that_keeps_all_or_less_than_nothing_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        smoothed([(1, 1.0)], weight)


@given(CURVES, st.integers(4, 50))
def test_thinning_keeps_order_ends_and_extremes(curve: list[tuple[float, float]], most: int) -> None:
    thin = list(thinned(curve, most))
    assert len(thin) <= most
    assert set(thin) <= set(curve)
    assert [step for step, _ in thin] == sorted({step for step, _ in thin})
    if curve:
        assert (thin[0], thin[-1]) == (curve[0], curve[-1])
        values = [value for _, value in curve]
        assert {min(values), max(values)} <= {value for _, value in thin}
    if len(curve) <= most:
        assert thin == curve
