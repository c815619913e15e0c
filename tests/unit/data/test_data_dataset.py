"""A trainer's data: files found, tokenized and mixed under one name."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from callboard.actors.data.dataset import TrainingData, load_data
from callboard.actors.data.errors import BadRecord, NoSuchData
from callboard.actors.data.lengths import Counts, TooLong
from callboard.actors.data.options import DataOptions
from callboard.actors.data.tokenized import Pair, Sequence
from callboard.actors.models.tokenizer import Tokenizer
from callboard.runtime.errors import ConfigError


def write(path: Path, letter: str, number: int) -> Path:
    path.write_text("".join(json.dumps({"text": letter * (at + 1)}) + "\n" for at in range(number)))
    return path


def texts(data: TrainingData, tokenizer: Tokenizer, number: int, start: int = 0) -> list[str]:
    found = []
    for sample in islice(data.samples(start), number):
        assert isinstance(sample, Sequence)
        found.append(tokenizer.decode(sample.token_ids.tolist()))
    return found


def test_several_data_sets_under_one_name(model: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", "a", 4), write(tmp_path / "b", "b", 6)
    seen: list[tuple[Path, int]] = []

    def progress(path: Path, counts: Counts) -> None:
        seen.append((path, counts.num_records))

    data = load_data(f"{a}:3,{b}:1", model, DataOptions(), seed=5, progress=progress)
    assert seen == [(a, 4), (b, 6)]
    assert len(data) == 10
    assert data.counts().num_records == 10
    assert data.counts().num_tokens == sum(range(2, 6)) + sum(range(2, 8))
    drawn = texts(data, tokenizer, 400)
    assert 250 < sum("a" in text for text in drawn) < 350
    assert set(drawn) == {"a" * n for n in range(1, 5)} | {"b" * n for n in range(1, 7)}
    assert texts(data, tokenizer, 50, start=300) == drawn[300:350]
    again = load_data(f"{a}:3,{b}:1", model, DataOptions(), seed=5)
    assert texts(again, tokenizer, 400) == drawn


def test_the_files_of_a_data_set_are_numbered_on(
    model: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write(tmp_path / letter, letter, number) for letter, number in (("a", 2), ("b", 3), ("c", 1))]
    monkeypatch.setattr("callboard.actors.data.dataset.files_of", lambda name: paths)
    (part,) = load_data("hf:org/name", model, DataOptions()).parts
    found = [part[index] for index in range(len(part))]
    assert [tokenizer.decode(one.token_ids.tolist()) for one in found if isinstance(one, Sequence)] == [
        "a", "aa", "b", "bb", "bbb", "c"
    ]  # fmt: skip
    for index in (-1, 6):
        with pytest.raises(IndexError):
            part[index]


def test_preferences_are_pairs_and_stay_alone(model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs"
    pairs.write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}))
    data = load_data(str(pairs), model, DataOptions())
    assert data.is_pairs
    assert isinstance(next(data.samples()), Pair)
    with pytest.raises(ConfigError, match="cannot be mixed"):
        load_data(f"{pairs},{write(tmp_path / 'a', 'a', 1)}", model, DataOptions())


def test_what_training_cannot_start_with_is_said_before(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a", "aaa", 3)
    with pytest.raises(NoSuchData, match="nothing to learn is left of"):
        load_data(str(path), model, DataOptions(max_tokens=2, too_long=TooLong.DROP))
    path.write_text(path.read_text() + "bad\n")
    with pytest.raises(BadRecord, match=":4: "):
        load_data(str(path), model, DataOptions())
