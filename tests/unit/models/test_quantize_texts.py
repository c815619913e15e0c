"""Calibration text from whatever can be trained on, drawn by a seed, with some of it held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from callboard.actors.data.errors import NoSuchData
from callboard.actors.models.loading import load_tokenizer
from callboard.actors.quantize.calibration import BUILT_IN, draw, read_tokens
from callboard.runtime.errors import UsageError

TURNS = [{"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}]
SAMPLES = {
    "alpaca": {"instruction": "Add 1 and 2.", "input": "", "output": "3"},
    "openai": {"messages": TURNS},
    "sharegpt": {"conversations": [{"from": "human", "value": "Add 1 and 2."}, {"from": "gpt", "value": "3"}]},
    "pairs": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": "four"}]},
}


@pytest.mark.parametrize("kind", SAMPLES)
def test_records_are_calibrated_on_as_the_model_will_meet_them(tiny_path: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([SAMPLES[kind]] * 2))
    tokenizer = load_tokenizer(tiny_path)
    read = read_tokens(tiny_path, str(path), "chatml").tolist()
    half = len(read) // 2
    assert read[:half] == read[half:]
    said = tokenizer.decode(read[:half])
    assert said.index("Add 1 and 2.") < said.index("assistant") < said.rindex("3")
    assert "four" not in said


def test_plain_text_is_read_as_it_is(tiny_path: Path, tmp_path: Path) -> None:
    text = "A lock lifts a boat from one level to the next."
    (tmp_path / "a.txt").write_text(text)
    assert text in load_tokenizer(tiny_path).decode(read_tokens(tiny_path, str(tmp_path / "a.txt")).tolist())


def test_data_that_is_not_there_is_said_in_a_line(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(NoSuchData, match="is not there"):
        read_tokens(tiny_path, str(tmp_path / "none.json"))


BYTES = np.frombuffer(BUILT_IN.read_bytes(), np.uint8)


def test_the_same_seed_draws_the_same_and_nothing_is_both_seen_and_held_out() -> None:
    first, again, other = (draw(BYTES, "", samples=20, length=100, seed=seed) for seed in (3, 3, 4))
    assert first.calibration.equal(again.calibration)
    assert not first.calibration.equal(other.calibration)
    assert first.calibration.shape == (20, 100)
    assert first.text == "built-in"
    seen = {tuple(row) for row in first.calibration.tolist()}
    assert seen.isdisjoint(tuple(row) for row in first.held_out.tolist())


def test_the_built_in_text_is_prose_and_code_of_some_length() -> None:
    text = BUILT_IN.read_text("utf-8")
    assert len(text) > 20_000
    assert all(part in text for part in ("def ", "Question:", "User:", "SELECT"))


@pytest.mark.parametrize(("samples", "length"), [(0, 10), (1, 1), (1, 10**6)])
def test_sizes_that_cannot_be_drawn_are_refused(samples: int, length: int) -> None:
    with pytest.raises(UsageError):
        draw(BYTES, "", samples=samples, length=length, seed=0)
