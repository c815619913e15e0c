"""`callboard bench bus` as a person runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TARGETS = {
    "local_ask_over_bare",
    "local_ask_rate_over_bare",
    "local_tell_over_bare",
    "bus_ask_over_raw_p50",
    "bus_ask_rate_over_raw",
    "bus_tell_rate_over_raw",
    "bus_stream_frames_over_raw",
    "bus_ask_rate_over_ray",
    "idle_actor_kb",
    "spawns_per_s",
    "help_ms",
    "up_ready_s",
    "blob_64mib_mb_per_s",
    "blob_store_mb_per_s",
    "snapshot_over_raw_put",
    "log_append_over_synced_publish",
    "log_batched_events_over_single",
    "remote_spawn_p50_ms",
    "process_spawn_p50_ms",
}


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_benchmark_of_the_bus_reports_every_target() -> None:
    command = Path(sys.executable).with_name("callboard")
    done = subprocess.run([command, "bench", "bus", "--quick", "--json"], stdout=subprocess.PIPE, check=True)
    report = json.loads(done.stdout)
    assert report["bench"] == "bus"
    assert set(report["targets"]) == TARGETS
    for name, target in report["targets"].items():
        if target["value"] is None:
            assert (name, bool(target["why"])) == ("bus_ask_rate_over_ray", True)
        else:
            assert target["value"] == report["results"][name]["value"] > 0
    for figure in report["results"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
