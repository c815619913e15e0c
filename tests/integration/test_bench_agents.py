"""`callboard bench agents` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {
    "rewoo_wall_over_path",
    "rewoo_prompt_tokens_over_react",
    "step_over_synced_publish",
    "paused_runs_1000_mb",
    "steps_over_langgraph",
    "concurrent_steps_over_langgraph",
}
BESIDE_PEERS = {"steps_over_langgraph", "concurrent_steps_over_langgraph"}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_benchmark_of_agents_reports_every_target() -> None:
    command = Path(sys.executable).with_name("callboard")
    done = subprocess.run([command, "bench", "agents", "--quick", "--json"], stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    assert report["bench"] == "agents"
    assert set(report["targets"]) == TARGETS
    for name, target in report["targets"].items():
        if target["value"] is None:
            assert name in BESIDE_PEERS
            assert target["why"]
        else:
            assert target["value"] == report["results"][name]["value"] > 0
    # What does not depend on how fast this machine is.
    assert report["targets"]["rewoo_prompt_tokens_over_react"]["met"]
    assert report["targets"]["paused_runs_1000_mb"]["met"]
    for figure in report["results"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
