"""`callboard bench quantize`: the model off its grid computes the same, and the report holds every promise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from callboard.actors.bench import quantize
from callboard.actors.models.loading import load_tokenizer
from callboard.actors.quantize.evaluate import head_of, last_hidden
from callboard.actors.quantize.rotated import RotatedSource
from callboard.actors.quantize.source import open_source

TARGETS = {"int8_ppl_ratio", "w4_loss_over_rtn", "w4_ppl_ratio", "kv8_ppl_ratio", "kv4_ppl_ratio"}


def check_rotated(path: Path, token_ids: torch.Tensor) -> None:
    """Within 1e-4 of the largest logit, the same in value though no weight is."""
    source = open_source(path)
    rotated = RotatedSource(source, seed=5)
    with torch.inference_mode():
        ours, theirs = (F.linear(last_hidden(one, token_ids), head_of(one)) for one in (source, rotated))
        before, after = (dict(one.tensors(1))["model.layers.1.mlp.up_proj.weight"] for one in (source, rotated))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4 * float(ours.abs().max()))
    assert not torch.allclose(before, after, atol=1e-3)
    rotated.close()


def test_a_rotated_model_gives_the_same_logits(tiny_path: Path) -> None:
    check_rotated(tiny_path, torch.randint(4, 200, (2, 40)))


@pytest.mark.slow
def test_smollm2_rotated_off_its_grid_gives_the_same_logits(smollm2_path: Path) -> None:
    tokenizer = load_tokenizer(smollm2_path)
    text = "A canal that has to climb a hill cannot do so in a slope, for its water would run away."
    check_rotated(smollm2_path, torch.tensor([tokenizer.encode(text)]))


def test_the_report_holds_every_promise(tiny_path: Path) -> None:
    said: list[str] = []
    options = replace(quantize.QuantizeOptions(tiny_path).quick(), held_out_chars=1500, calibration_chars=3000)
    report = quantize.run(options, said.append)
    assert report.targets.keys() == TARGETS
    assert all(target.value is not None and target.at_most for target in report.targets.values())
    assert {
        f"perplexity.{name}" for name in ("full", "rtn4", "awq4", "gptq4", "awq+gptq4", "smooth8", "kv8", "kv4")
    } <= (report.results.keys())
    assert report.results["perplexity.kv8"].value == pytest.approx(report.results["perplexity.full"].value, rel=0.02)
    assert json.loads(report.to_json())["bench"] == "quantize"
    assert quantize.plot(report).startswith("<svg")
    assert "full, layer 2 of 2" in said


def test_held_out_text_is_no_part_of_calibration(tiny_path: Path) -> None:
    options = quantize.QuantizeOptions(tiny_path).quick()
    held_out, calibration = quantize.texts(options, load_tokenizer(tiny_path).encode)
    held = {tuple(row) for row in held_out.tolist()}
    assert held.isdisjoint(tuple(row) for row in calibration.tolist())
    assert held_out.shape[1] == calibration.shape[1] == options.length


def test_targets_are_ratios_to_the_full_model() -> None:
    report = quantize.Report("quantize", {})
    quantize.add_targets(
        report,
        {"full": 10.0, "rtn4": 14.0, "gptq4": 12.5, "gptaq4": 12.0, "smooth8": 10.04, "kv8": 10.01, "kv4": 10.5},
    )
    met = {name: target.met for name, target in report.targets.items()}
    assert report.targets["w4_loss_over_rtn"].value == pytest.approx(0.5)
    assert met == {
        "int8_ppl_ratio": True,
        "w4_loss_over_rtn": True,
        "w4_ppl_ratio": False,
        "kv8_ppl_ratio": True,
        "kv4_ppl_ratio": False,
    }
