"""Calibration text from every format that models are trained on, drawn by a seed, with some of it held out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from callboard.actors.quantize.calibration import BUILT_IN, sample
from callboard.actors.quantize.texts import read_texts
from callboard.runtime.errors import UsageError

SAMPLES = {
    "alpaca": {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    "openai": {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "3"}]},
    "pieces": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Add."}]}, {"content": "3"}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}]},
    "moss": {"chat": {"turn_1": {"Human": "Add.", "MOSS": "3"}}},
    "guanaco": {"text": "### Human: Add. ### Assistant: 3"},
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_training_format_gives_what_was_said_in_its_order(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    samples = [SAMPLES[kind]] * 2
    path.write_text(json.dumps(samples) if suffix == ".json" else "\n\n".join(map(json.dumps, samples)))
    texts = read_texts(path)
    assert len(texts) == 2
    assert texts[0].index("Add.") < texts[0].index("3")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{", "no JSON"),
        ("a.jsonl", '{"text": "a"}\n{', "no JSONL"),
        ("a.jsonl", '{"text": "a"}\n{"pixels": 3}', "sample 2 is of no format"),
        ("a.txt", "  \n", "holds no text"),
        ("a.json", "[]", "holds no text"),
    ],
)
def test_what_is_no_text_is_said_in_a_line(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=said):
        read_texts(tmp_path / name)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is no text"):
        read_texts(tmp_path / "a.txt")


def by_byte(text: str) -> list[int]:
    return list(text.encode())


def test_the_same_seed_draws_the_same_and_nothing_is_both_seen_and_held_out() -> None:
    first, again, other = (sample(by_byte, None, samples=20, length=100, seed=seed) for seed in (3, 3, 4))
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
        sample(by_byte, None, samples=samples, length=length, seed=0)
