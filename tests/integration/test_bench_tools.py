"""`callboard bench tools`: a quick run measures every promise, or says why it cannot."""

from __future__ import annotations

import json

import pytest

from callboard.actors.bench import tools


@pytest.mark.slow
def test_a_quick_run_holds_every_target_against_its_goal() -> None:
    steps: list[str] = []
    report = json.loads(tools.run(tools.QUICK, steps.append).to_json())
    targets = report["targets"]
    assert set(targets) == {
        "call_over_ask_p50",
        "image_32mib_mb_per_s",
        "sandbox_warm_p50_ms",
        "sandbox_cold_p50_ms",
    }
    for name, target in targets.items():
        assert (target["value"] or 0) > 0 or target["why"], name
    assert targets["call_over_ask_p50"]["goal"] == 1.3
    assert report["results"]["call_of_500_p50"]["value"] > 0
    assert steps
