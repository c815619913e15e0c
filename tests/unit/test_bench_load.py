"""The load of `callboard bench serve` is what its options say, and its figures are what percentiles mean."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.bench.errors import DatasetInvalid
from callboard.actors.bench.load import Record, Run
from callboard.actors.bench.percentiles import percentile
from callboard.actors.bench.serve_report import RATE, Bounds, ServeReport, level_of, plot
from callboard.actors.bench.workload import Lengths, from_pairs, poisson_arrivals, read_sharegpt, synthetic
from callboard.runtime.axes import nice_step
from callboard.runtime.plot import Chart, Series, svg

SAMPLES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


def test_arrivals_have_the_rate_and_the_scatter_of_a_poisson_process() -> None:
    times = poisson_arrivals(5.0, 20_000, "seed")
    gaps = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert min(gaps) >= 0
    assert mean == pytest.approx(1 / 5.0, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)  # of an exponential distribution, both are the same


def test_the_same_seed_sends_the_same_load() -> None:
    lengths = Lengths(100, 50, 1000)
    assert poisson_arrivals(2.0, 10, "a") == poisson_arrivals(2.0, 10, "a") != poisson_arrivals(2.0, 10, "b")
    assert synthetic(10, lengths, 500, "a") == synthetic(10, lengths, 500, "a") != synthetic(10, lengths, 500, "b")


def test_synthetic_lengths_have_the_means_that_were_asked_for() -> None:
    asked = synthetic(4000, Lengths(100, 50, 100_000), 500, "seed")
    assert sum(len(each.prompt_ids) for each in asked) / len(asked) == pytest.approx(100, rel=0.05)
    assert sum(each.output for each in asked) / len(asked) == pytest.approx(50, rel=0.05)
    assert {token for each in asked for token in each.prompt_ids} == set(range(500))


@given(st.integers(1, 300), st.integers(1, 300), st.integers(2, 200), st.integers())
def test_no_synthetic_request_is_longer_than_the_context(prompt: int, output: int, longest: int, seed: int) -> None:
    for each in synthetic(20, Lengths(prompt, output, longest), 10, str(seed)):
        assert each.prompt_ids
        assert each.output >= 1
        assert len(each.prompt_ids) + each.output <= longest


def conversation(*turns: tuple[str, str]) -> dict[str, object]:
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns]}


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_a_data_set_gives_first_questions_and_their_answers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "talks.json",
        [
            conversation(("human", "one"), ("gpt", "two"), ("human", "three"), ("gpt", "four")),
            conversation(("gpt", "begins by itself"), ("human", "so")),
            conversation(("human", "nobody answers")),
            conversation(("human", ""), ("gpt", "to nothing")),
            {"other": "keys"},
            conversation(("user", "five"), ("assistant", "six")),
        ],
    )
    assert read_sharegpt(path) == [("one", "two"), ("five", "six")]


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[]", '[{"conversations": [{"from": 1}]}]', '[{"conversations": []}]', "\xff"]
)
def test_what_is_no_data_set_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "talks.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetInvalid):
        read_sharegpt(path)


def test_a_data_set_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DatasetInvalid, match="No such file"):
        read_sharegpt(tmp_path / "talks.json")


def test_requests_take_the_lengths_of_the_data_set_and_pass_over_what_is_too_long() -> None:
    pairs = [("ab", "cde"), ("f" * 90, "g" * 20), ("hij", "k")]
    asked = from_pairs(pairs, 6, 100, lambda text: [ord(letter) for letter in text], "seed")
    assert {(bytes(each.prompt_ids), each.output) for each in asked} == {(b"ab", 3), (b"hij", 1)}
    assert len(asked) == 6
    with pytest.raises(DatasetInvalid):
        from_pairs(pairs[1:2], 6, 100, lambda text: [ord(letter) for letter in text], "seed")


def test_percentiles_lie_between_the_nearest_ranks() -> None:
    assert [percentile([3.0, 1.0, 2.0], percent) for percent in (0, 50, 75, 100)] == [1.0, 2.0, 2.5, 3.0]
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no samples"):
        percentile([], 50)


@given(SAMPLES, st.floats(0, 100), st.floats(0, 100))
def test_a_higher_percentile_is_no_less_and_all_lie_within_the_samples(
    samples: list[float], first: float, second: float
) -> None:
    low, high = sorted((first, second))
    below, above = percentile(samples, low), percentile(samples, high)
    assert min(samples) <= below or below == pytest.approx(min(samples))
    assert below <= above or below == pytest.approx(above)
    assert above <= max(samples) or above == pytest.approx(max(samples))


def sample_run() -> Run:
    good = Record(due=1.0, num_prompt_tokens=10, first=1.2, ended=1.4, num_tokens=3, gaps=[0.1, 0.1])
    slow_to_begin = Record(due=1.0, num_prompt_tokens=10, first=3.0, ended=3.2, num_tokens=3, gaps=[0.1, 0.1])
    slow_to_go_on = Record(due=2.0, num_prompt_tokens=10, first=2.2, ended=3.2, num_tokens=3, gaps=[0.5, 0.5])
    refused = Record(due=2.0, num_prompt_tokens=10, ended=2.1, error="serve.overloaded")
    return Run([good, slow_to_begin, slow_to_go_on, refused], 4.0)


def test_the_figures_of_a_load_count_from_when_requests_were_due() -> None:
    figures = level_of(RATE, 2.0, sample_run(), Bounds(ttft_ms=500, itl_ms=200)).figures
    assert figures["requests"] == (4, "requests")
    assert figures["errors"] == (1, "requests")
    assert figures["request_rate"] == (3 / 4.0, "requests/s")
    assert figures["goodput"] == (1 / 4.0, "requests/s")
    assert figures["output_rate"] == (9 / 4.0, "tokens/s")
    assert figures["total_rate"] == (39 / 4.0, "tokens/s")
    assert figures["ttft_p50"][0] == pytest.approx(200)
    assert figures["itl_p50"][0] == pytest.approx(100)
    assert figures["e2e_p50"][0] == pytest.approx(1200)


def test_a_load_that_failed_whole_has_errors_and_no_latencies() -> None:
    run = Run([Record(due=0.0, num_prompt_tokens=1, ended=1.0, error="serve.overloaded")], 1.0)
    figures = level_of(RATE, 1.0, run, Bounds(1000, 200)).figures
    assert figures["errors"] == (1, "requests")
    assert not [name for name in figures if name.startswith(("ttft", "itl", "e2e"))]


def test_the_plot_is_an_image_with_a_line_for_each_percentile() -> None:
    report = ServeReport("serve", {"model": "a <model> & more", "cpu": "x", "cores": 2})
    report.take([level_of(RATE, rate, sample_run(), Bounds(500, 200)) for rate in (1.0, 2.0)])
    root = ElementTree.fromstring(plot(report))
    lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 3 * 3 + 2
    assert all(len(line.attrib["points"].split()) == 2 for line in lines)
    assert "a <model> & more on x, 2 cores" in "".join(root.itertext())


def test_points_lie_where_the_axes_say() -> None:
    drawn = svg([Chart("t", "along", (Series("s", ((0.0, 0.0), (9.0, 50.0))),))], "title")
    root = ElementTree.fromstring(drawn)
    line = root.find(".//{http://www.w3.org/2000/svg}polyline")
    assert line is not None
    (left, bottom), (right, top) = ([*map(float, place.split(","))] for place in line.attrib["points"].split())
    ticks = {text.text: float(text.attrib["y"]) - 4 for text in root.iter("{http://www.w3.org/2000/svg}text")}
    assert left < right
    assert top < bottom
    assert top == pytest.approx(ticks["50"], abs=0.2)


@given(st.floats(1e-6, 1e9), st.integers(1, 10))
def test_a_scale_has_round_steps_and_few_of_them(span: float, count: int) -> None:
    step = nice_step(span, count)
    assert step * count >= span * (1 - 1e-6)
    assert f"{step:.0e}"[0] in "125"


def test_the_table_has_a_column_for_each_load() -> None:
    from io import StringIO

    from rich.console import Console

    report = ServeReport("serve", {"cores": 2})
    report.take([level_of(RATE, rate, sample_run(), Bounds(500, 200)) for rate in (1.0, 2.0)])
    output = StringIO()
    Console(file=output, width=120).print(*report.tables(), sep="\n")
    lines = output.getvalue().splitlines()
    for words in (("1 requests/s", "2 requests/s"), ("time to first token p50, ms", "200"), ("goodput", "0.25")):
        assert any(all(word in line for word in words) for line in lines), words
    results = json.loads(report.to_json())["results"]
    assert results["rate_2.ttft_p50"] == {"value": 200.0, "unit": "ms", "low": 200.0, "high": 200.0}
