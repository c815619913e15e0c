"""`callboard bench tui`: a quick run measures every promise on the app in a real terminal."""

from __future__ import annotations

import json

import pytest

from callboard.actors.bench import tui


@pytest.mark.slow
def test_a_quick_run_holds_every_target_against_its_goal() -> None:
    steps: list[str] = []
    report = json.loads(tui.run(tui.QUICK, steps.append).to_json())
    targets, results = report["targets"], report["results"]
    assert {name: target["goal"] for name, target in targets.items()} == {
        "first_paint_ms": 500,
        "idle_cpu_share_worst_page": 5,
    }
    assert all(target["value"] > 0 for target in targets.values())
    assert results["empty_app_first_paint_ms"]["value"] < results["connected_ms"]["value"]
    shares = [results[f"idle_cpu_share_{page}"]["value"] for page in tui.QUICK.pages]
    assert targets["idle_cpu_share_worst_page"]["value"] == max(shares)
    assert steps
