"""`callboard bench kernels` as a person runs it, and how its figures are held against the goals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
import torch

from callboard.actors.bench.kernels import GOALS, KernelsOptions, _Bench, choose_device, run
from callboard.actors.bench.kernels_meter import Ceilings, CpuMeter, Meter
from callboard.actors.bench.kernels_plot import plot
from callboard.actors.bench.kernels_rows import Row, copies
from callboard.actors.bench.kernels_sizes import CARD, CPU, quick
from callboard.runtime.errors import ConfigError

COMMAND = str(Path(sys.executable).with_name("callboard"))
SVG = "{http://www.w3.org/2000/svg}"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([COMMAND, "bench", "kernels", *arguments], env=env, capture_output=True, text=True)


@pytest.mark.slow
def test_every_row_and_every_goal_is_there() -> None:
    steps: list[str] = []
    made = run(KernelsOptions("cpu", quick=True, rounds=1), steps.append)
    assert not made.notes
    assert "rms_norm" in steps
    report = json.loads(made.to_json())
    assert report["bench"] == "kernels"
    assert report["machine"]["device"] == "cpu"
    results: dict[str, Any] = report["results"]
    for goal in GOALS:
        assert report["targets"][goal.name]["value"] is None
        assert report["targets"][goal.name]["why"] == "for cards"
        if goal.row:
            ceiling = "copy" if goal.unit == "of copy" else "matrix_bf16"
            share = results[goal.row]["value"] / results[ceiling]["value"]
            assert results[f"{goal.row}_share"]["value"] == pytest.approx(share, rel=0.01)
    for name in ("stream_bf16.torch", "stream_w4.torch", "batch.torch", "batch.transformers_cb", "cross_entropy.ours"):
        assert results[name]["value"] > 0
    bars = [one for one in ElementTree.fromstring(plot(made)).iter(f"{SVG}rect") if one.get("height") == "14"]
    assert len(bars) == sum(one["unit"].startswith("of ") for one in results.values())


def test_a_device_that_is_not_here_is_said_in_a_line() -> None:
    missing = f"cuda:{torch.cuda.device_count()}" if torch.cuda.is_available() else "cuda"
    done = bench("--quick", "--device", missing)
    assert done.returncode == 2
    assert "there is no device" in done.stderr
    assert "Traceback" not in done.stderr
    for name in ("nonsense", "meta"):
        with pytest.raises(ConfigError, match=name):
            choose_device(name)


class Card(Meter):
    """A card that takes a millisecond for everything."""

    def __init__(self) -> None:
        super().__init__(torch.device("cuda", 0), 3)

    def seconds(self, calls: Any, *, graph: bool = True) -> list[float]:
        return [1e-3, 2e-3, 1e-3]

    def peak_bytes(self, call: Any) -> int:
        raise NotImplementedError

    def _cycle(self, calls: Any, graph: bool) -> Any:
        raise NotImplementedError

    def _time(self, cycle: Any, repeats: int) -> float:
        raise NotImplementedError


def test_goals_are_held_against_shares_of_the_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    one = _Bench(Card(), CARD, lambda _: None)
    one.ceilings = Ceilings(copy=1e12, matrix=1e15)
    one._try("rms_norm", lambda: one._row("rms_norm", Row([], num_bytes=900_000_000)))
    one._try("gate_product", lambda: one._row("gate_product", Row([], num_bytes=100_000_000)))
    one._try("prefill_attention", lambda: one._row("prefill_attention", Row([], operations=700_000_000_000)))

    def fail() -> None:
        raise ValueError("head sizes of 3 are not done\nby anybody")

    one._try("rotary_write", fail)
    one._report_goals()
    targets = one.report.targets
    assert (targets["rms_norm_over_copy"].value, targets["rms_norm_over_copy"].met) == (pytest.approx(0.9), True)
    assert (targets["gate_product_over_copy"].value, targets["gate_product_over_copy"].met) == (
        pytest.approx(0.1),
        False,
    )
    assert targets["prefill_attention_over_matrix"].value == pytest.approx(0.7)
    assert one.report.results["rms_norm"].value == pytest.approx(900)
    assert targets["rotary_write_over_copy"].why == "rotary_write: ValueError: head sizes of 3 are not done"
    assert one.report.notes == [targets["rotary_write_over_copy"].why]
    assert targets["w4a16_row_over_copy"].why == "it was not measured"
    assert set(targets) == {goal.name for goal in GOALS}


def test_four_bits_are_as_good_as_the_worst_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    one = _Bench(CpuMeter(torch.device("cpu"), 2), quick(CPU), lambda _: None)
    seconds = iter([[2.0, 4.0], [4.0, 4.0], [1.0, 1.0], [1.5, 2.0]])  # four bits, bfloat16; for each number of rows
    monkeypatch.setattr(one.meter, "seconds", lambda calls: next(seconds))
    assert one._w4_over_bf16() == {"w4a16_over_bf16": [1.5, 1.0]}
    assert one.report.results["w4a16_over_bf16.rows_1"].value == 1.5


def test_a_row_goes_over_more_memory_than_was_said() -> None:
    assert len(copies(CARD, 30 << 20)) * (30 << 20) >= 512 << 20
    assert len(copies(CARD, 1 << 30)) == 2


def test_the_peak_of_a_call_is_its_own() -> None:
    meter = CpuMeter(torch.device("cpu"), 1)
    before = torch.ones(1 << 20, dtype=torch.uint8)

    def call() -> None:
        torch.ones(3 << 20, dtype=torch.uint8).sum()

    assert meter.peak_bytes(call) == (3 << 20) + 8  # the sum beside it
    weight = torch.ones(1 << 20, requires_grad=True)
    # The product beside its exponential; and the exponential, which is kept, beside the gradient.
    assert meter.peak_bytes(lambda: (weight * before).exp().sum().backward()) >= 8 << 20
