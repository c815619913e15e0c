"""What is kept of an evaluation, and how it is found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from callboard.actors.evaluate.record import Record, find_record, kept_report, kept_samples, summaries
from callboard.actors.models.evaluations import RecordHead
from callboard.runtime.errors import ModelDamaged, UsageError
from callboard.schemas.evaluate import EvaluatedSample, EvaluationReport, MetricValue, ModelEvaluation


def head(id: str = "abc123", **options: Any) -> RecordHead:
    fields: dict[str, Any] = {
        "id": id, "model": "m", "digest": "d", "dtype": "float32", "compute_dtype": "float32", "kv_cache": "float32",
        "context_length": 256, "questions": "q", "task": "arc", "data": "arc.jsonl", "data_sha256": "0", "shots": 0,
        "shots_from": "", "limit": 0, "seed": 0, "chat": False, "max_tokens": 0, "total": 3, **options,
    }  # fmt: skip
    return RecordHead(**fields)


def sample(index: int, **options: Any) -> EvaluatedSample:
    return EvaluatedSample(index=index, line=index + 1, prompt=f"prompt {index}", **options)


def report() -> EvaluationReport:
    model = ModelEvaluation(
        id="abc123", model="m", digest="d", dtype="float32", context_length=256,
        metrics=(MetricValue("acc", 0.5, 0.5),), samples=2, finished=7.0,
    )  # fmt: skip
    return EvaluationReport(
        task="arc", data="arc.jsonl", data_sha256="0", shots=0, shots_from="", limit=0, seed=0, chat=False,
        max_tokens=0, samples=2, num_left_out=1, left_out=(), models=(model,),
    )  # fmt: skip


def test_samples_are_there_for_the_next_process(tmp_path: Path) -> None:
    record = Record(tmp_path, head())
    record.add(sample(2))
    record.add(sample(0, is_right=False))
    # As after a kill: nothing is closed, and another process sees what was added.
    assert [one.index for one in kept_samples(tmp_path / "abc123")] == [0, 2]
    record.close()
    again = Record(tmp_path, head(started=9.0))
    assert sorted(again.samples) == [0, 2]
    assert (again.report, again.head.started) == (None, 0.0)
    again.add(sample(1))
    again.finish(report())
    again.close()
    assert [one.index for one in kept_samples(tmp_path / "abc123", wrong=True)] == [0]
    assert kept_report(tmp_path / "abc123") == report()


def test_a_line_that_was_not_finished_is_no_sample_and_the_next_one_is_whole(tmp_path: Path) -> None:
    record = Record(tmp_path, head())
    record.add(sample(0))
    record.close()
    path = tmp_path / "abc123" / "samples.jsonl"
    path.write_bytes(path.read_bytes() + msgspec.json.encode(sample(1))[:30])
    again = Record(tmp_path, head())
    assert sorted(again.samples) == [0]
    again.add(sample(1))
    again.close()
    assert kept_samples(tmp_path / "abc123") == [sample(0), sample(1)]


def test_a_damaged_line_is_said_and_again_begins_anew(tmp_path: Path) -> None:
    record = Record(tmp_path, head())
    record.close()
    path = tmp_path / "abc123" / "samples.jsonl"
    path.write_bytes(b"{\n" + msgspec.json.encode(sample(1)) + b"\n")
    with pytest.raises(ModelDamaged, match=r"samples.jsonl:1 is damaged") as caught:
        Record(tmp_path, head())
    assert "--again" in caught.value.hint
    anew = Record(tmp_path, head(), again=True)
    assert anew.samples == {}
    anew.close()


def test_one_process_writes_a_record(tmp_path: Path) -> None:
    record = Record(tmp_path, head())
    with pytest.raises(UsageError, match="being made already"):
        Record(tmp_path, head())
    record.close()
    Record(tmp_path, head()).close()


def test_records_are_listed_the_newest_first_and_found_by_their_beginning(tmp_path: Path) -> None:
    old = Record(tmp_path, head("abc123", started=1.0))
    old.finish(report())
    old.close()
    new = Record(tmp_path, head("abd456", started=2.0))
    new.add(sample(0))
    new.close()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "head.json").write_text("{")
    found = summaries(tmp_path)
    assert [(one.id, one.done, one.total, one.finished) for one in found.evaluations] == [
        ("abd456", 1, 3, 0.0),
        ("abc123", 3, 3, 7.0),
    ]
    assert found.evaluations[1].metrics == (MetricValue("acc", 0.5, 0.5),)
    assert len(found.trouble) == 1
    assert "broken" in found.trouble[0]
    assert find_record(tmp_path, "abd") == tmp_path / "abd456"
    for wrong, complaint in (("ab", "several"), ("x", "is none"), ("../a", "is none"), ("", "is none")):
        with pytest.raises(UsageError, match=complaint):
            find_record(tmp_path, wrong)
    with pytest.raises(UsageError, match="not finished"):
        kept_report(tmp_path / "abd456")
