"""`callboard bench train`: its samples, how contenders take turns, and a run of it on a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from callboard.actors.bench import train_options
from callboard.actors.bench.contenders import Contender
from callboard.actors.bench.kernels_sizes import LLAMA_7B
from callboard.actors.bench.report import Report
from callboard.actors.bench.train_card import SMALL_CARD, CardBench, Lengths
from callboard.actors.bench.train_data import write_samples
from callboard.actors.bench.train_rows import CARD, LEAST_TOKENS, MOST_TOKENS, PROMISES, TrainOptions
from callboard.actors.bench.train_turns import StepsTaken, TakeSteps
from callboard.runtime.errors import UsageError

COMMAND = str(Path(sys.executable).with_name("callboard"))
COUNTING = """
import sys
sys.path.insert(0, sys.argv[1])
from turns import Turns

facts = iter(range(100))
turns = Turns(lambda: {"matrix_rate": float(next(facts))})
print("hello from a framework")
wanted, step = turns.ready(["pytest"]), 0
while wanted:
    step += 1
    wanted = turns.step(10 * step, 0.5 * step)
"""


def test_a_trainer_waits_where_its_turn_ends() -> None:
    folder = Path(train_options.__file__).with_name("peers_train")
    contender = Contender("counting", [sys.executable, "-c", COUNTING, str(folder)])
    try:
        contender.start()
        assert contender.ready.versions == {"pytest": pytest.__version__}
        first = contender.ask(TakeSteps(1), StepsTaken)
        second = contender.ask(TakeSteps(2), StepsTaken)
    finally:
        contender.close()
    assert (first.tokens, first.losses, first.matrix_rate) == (10, (0.5,), 0.5)  # the mean of 0 before and 1 after
    assert (second.tokens, second.losses, second.matrix_rate) == (50, (1.0, 1.5), 2.5)


def test_samples_are_the_same_for_us_and_for_peers(tiny_llama: Path, tmp_path: Path) -> None:
    data, samples = write_samples(tiny_llama, tmp_path, 12, seed=5)
    texts = [json.loads(line)["messages"] for line in data.read_text().splitlines()]
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(texts) == len(found) == 12
    for sample in found:
        assert LEAST_TOKENS <= len(sample["input_ids"]) <= MOST_TOKENS
        labels = [label for label in sample["labels"] if label != -100]
        assert 0 < len(labels) < len(sample["labels"])
        assert all(
            label in (-100, token) for token, label in zip(sample["input_ids"], sample["labels"], strict=True)
        )  # fmt: skip
    assert max(len(sample["input_ids"]) for sample in found) > 150
    (tmp_path / "again").mkdir()
    again = write_samples(tiny_llama, tmp_path / "again", 12, seed=5)[1]
    assert again.read_text() == samples.read_text()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--parts", "lora,speed"], "no part 'speed'"),
        (["--rounds", "0"], "1 or more"),
        (["--samples", "6", "--rows", "4"], "no whole number of batches"),
        (["--trl-python", "/nowhere/python"], "no Python /nowhere/python"),
    ],
)
def test_flags_that_make_no_sense_are_named(flags: list[str], what: str) -> None:
    parser = ArgumentParser()
    train_options.configure(parser)
    with pytest.raises(UsageError, match=what):
        train_options.chosen(parser.parse_args(flags))


@pytest.mark.slow
@pytest.mark.timeout(400)  # a dozen processes that import torch
def test_it_reports_every_target(tiny_llama: Path) -> None:
    command = [COMMAND, "bench", "train", "--quick", "--threads", "1", "--model", str(tiny_llama), "--json"]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert list(report["targets"]) == [promise.name for promise in PROMISES]
    measured = {name for name, target in report["targets"].items() if target["value"] is not None}
    assert measured == {
        *("lora_tokens_over_trainer", "lora_memory_over_trainer", "lora_matmul_share", "full_tokens_over_trainer"),
        *("zero3_state_share", "zero_memory_error"),
    }
    assert all(target["why"] for name, target in report["targets"].items() if name not in measured)
    losses = {name: figure["value"] for name, figure in report["results"].items() if "first_loss" in name}
    for group, tolerance in (("lora", 0.02), ("full", 0.02), ("lora_float32", 1e-3)):
        ours, theirs = (losses[f"{group}_first_loss.{name}"] for name in ("ours", "trainer"))
        assert ours == pytest.approx(theirs, rel=tolerance), group


@pytest.mark.slow
@pytest.mark.timeout(300)  # five processes that import torch
def test_the_part_of_cards_runs_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sizes = replace(
        LLAMA_7B, hidden_size=128, intermediate_size=256, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32
    )
    options = TrainOptions(tmp_path, threads=1).quick()
    report = Report("train", {"versions": {}})
    watched = iter([1_000, 2_000, SMALL_CARD + 1, 4_000, 5_000])

    def watch() -> Callable[[Contender], int]:
        return lambda contender: int(next(watched)) if contender.peak_bytes else 0

    bench = CardBench(options, tmp_path, report, print, "cpu", sizes, Lengths(64, (64, 96, 128, 512)), watch)
    bench.measure()
    assert set(report.targets) == {promise.name for promise in PROMISES if promise.part == CARD}
    figures = {name: figure.value for name, figure in report.results.items()}
    assert figures["qlora_7b_peak_gb"] == 1e-6
    assert figures["qlora_7b_ctx_in_8gb"] == 96  # 128 did not fit, and nothing longer was tried
    assert figures["qlora_7b_tokens_over_peft"] > 0
    # Both begin with the same weights in the same four bits.
    ours, theirs = (figures[f"qlora_7b_first_loss.{name}"] for name in ("ours", "trainer"))
    assert ours == pytest.approx(theirs, rel=1e-3)
