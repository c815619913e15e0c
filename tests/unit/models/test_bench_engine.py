"""`callboard bench generate` and `callboard bench serve` as a person runs them, on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from callboard.actors.bench.generate_more import PERPLEXITY_GOALS
from callboard.actors.bench.generate_rows import PROMISES

COMMAND = str(Path(sys.executable).with_name("callboard"))
GENERATE_TARGETS = {
    *(promise.name for promise in PROMISES),
    *(f"{weights}_ppl_ratio" for weights in PERPLEXITY_GOALS),
    "engine_overhead_share_batch16",
    "second_turn_ttft_ratio",
    "contended_share",
}


@pytest.fixture(scope="session")
def bench_model(make_tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose heads are wide enough for every weight format."""
    return make_tiny_model(tmp_path_factory.mktemp("bench") / "tiny.gguf", head_dim=16)


@pytest.fixture
def bench_env() -> dict[str, str]:
    """One thread each: tests run beside others."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run_bench(env: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run([COMMAND, "bench", *arguments, "--json"], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for figure in report["results"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    return report


@pytest.mark.timeout(120)  # three engines start, each a process that imports torch
def test_generate_reports_every_target(bench_model: Path, bench_env: dict[str, str]) -> None:
    report = run_bench(
        bench_env,
        *("generate", "--quick", "--model", str(bench_model), "--rows", "batch16", "--no-transformers"),
        *("--engine", "threads=1", "--deterministic"),
    )
    assert report["bench"] == "generate"
    assert report["machine"]["kernels"]
    assert set(report["targets"]) == GENERATE_TARGETS
    measured = {name for name, target in report["targets"].items() if target["value"] is not None}
    assert measured == {
        *("int8_ppl_ratio", "int4_ppl_ratio"),
        *("engine_overhead_share_batch16", "second_turn_ttft_ratio", "contended_share"),
    }
    assert all(target["why"] for name, target in report["targets"].items() if name not in measured)
    for name in ("batch16.ours_int8", "batch16_deterministic_cost", "peak_memory.ours_bfloat16", "perplexity.int4"):
        assert report["results"][name]["value"] > 0, name


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_transformers_computes_the_model_that_we_do(bench_model: Path, bench_env: dict[str, str]) -> None:
    report = run_bench(
        bench_env,
        *("generate", "--quick", "--model", str(bench_model), "--rows", "batch16", "--weights", "bfloat16"),
        *("--engine", "threads=1"),
    )
    for peer in ("transformers", "transformers_cb"):
        # Rounding may turn a draw between two tokens; two models that differ agree in one of 256.
        assert report["results"][f"same_first_token.{peer}"]["value"] >= 0.75
        assert report["results"][f"batch16.{peer}"]["value"] > 0
    assert report["targets"]["batch16_over_transformers"]["value"] > 0


def test_an_engine_option_that_is_none_is_said_before_anything_runs(
    bench_model: Path, bench_env: dict[str, str]
) -> None:
    arguments = ["generate", "--quick", "--model", str(bench_model), "--engine", "max_batch_tokenz=512"]
    done = subprocess.run([COMMAND, "bench", *arguments], env=bench_env, capture_output=True, text=True)
    assert done.returncode != 0
    assert "max_batch_tokenz" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(120)
def test_serve_reports_each_rate_and_draws_it(bench_model: Path, bench_env: dict[str, str], tmp_path: Path) -> None:
    picture = tmp_path / "load.svg"
    report = run_bench(
        bench_env,
        *("serve", "--quick", "--model", str(bench_model), "--rate", "20,40", "--plot", str(picture)),
        *("--engine", "threads=1", "--engine", "num_blocks=256"),
    )
    assert (report["bench"], report["targets"]) == ("serve", {})
    assert report["machine"]["kernels"]
    for level in ("rate_20", "rate_40"):
        figures = {name: report["results"][f"{level}.{name}"]["value"] for name in ("requests", "errors", "goodput")}
        assert figures["requests"] == 4
        assert figures["errors"] == 0
        for latency in ("ttft", "itl", "e2e"):
            values = [report["results"][f"{level}.{latency}_p{percent}"]["value"] for percent in (50, 90, 99)]
            assert 0 <= values[0] <= values[1] <= values[2]
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_serve_takes_its_lengths_from_conversations(
    bench_model: Path, bench_env: dict[str, str], tmp_path: Path
) -> None:
    talks = [{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "tell"}]}]
    data = tmp_path / "talks.json"
    data.write_text(json.dumps(talks))
    report = run_bench(
        bench_env,
        *("serve", "--model", str(bench_model), "--closed-loop", "2", "--requests", "3", "--dataset", str(data)),
        *("--engine", "threads=1", "--engine", "num_blocks=256"),
    )
    results = report["results"]
    assert results["concurrency_2.requests"]["value"] == 3
    # "hello" is he, ll, o and "tell" is t, e, ll: three tokens out, three in, for each request.
    ratio = results["concurrency_2.total_rate"]["value"] / results["concurrency_2.output_rate"]["value"]
    assert ratio == pytest.approx(2.0, rel=1e-2)
