"""A look at data while a run is set up: bounded, honest about how much it saw, and as strict as the run will be."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from callboard.actors.data.errors import NoSuchData
from callboard.actors.train.data_look import look_at_data
from callboard.runtime.errors import NoSuchModel
from callboard.schemas.train import CheckData, CheckedFile, Task


def chat(number: int) -> dict[str, object]:
    said = [
        {"role": "user", "content": f"What is {number}?"},
        {"role": "assistant", "content": f"The number {number}."},
    ]
    return {"messages": said}


def write(path: Path, records: list[object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def look(data: str, **fields: object) -> tuple[CheckedFile, ...]:
    return look_at_data(CheckData(data=data, **fields), threading.Event()).files  # pyright: ignore[reportArgumentType]


def test_all_of_a_small_file_is_counted_and_its_first_sample_shown(tmp_path: Path) -> None:
    (found,) = look(write(tmp_path / "chats.jsonl", [chat(n) for n in range(7)]))
    assert (found.format, found.num_records, found.num_samples, found.num_bad) == ("openai", 7, 7, 0)
    assert found.complete
    assert found.kinds == ("conversation",)
    assert found.sample == "user: What is 0?\nassistant: The number 0."


def test_a_long_file_is_read_up_to_the_bound_and_says_so(tmp_path: Path) -> None:
    (found,) = look(write(tmp_path / "chats.jsonl", [chat(n) for n in range(60)]), max_records=50)
    assert (found.num_records, found.complete) == (50, False)
    (whole,) = look(str(tmp_path / "chats.jsonl"), max_records=60)
    assert (whole.num_records, whole.complete) == (60, True)


def test_no_time_is_no_error_but_an_incomplete_look(tmp_path: Path) -> None:
    (found,) = look(write(tmp_path / "chats.jsonl", [chat(1)]), seconds=0.0)
    assert (found.format, found.num_records, found.complete) == ("openai", 0, False)


def test_a_look_that_was_given_up_ends(tmp_path: Path) -> None:
    given_up = threading.Event()
    given_up.set()
    data = write(tmp_path / "chats.jsonl", [chat(n) for n in range(60)])
    assert look_at_data(CheckData(data=data), given_up).files[0].num_records == 0


def test_records_that_cannot_be_used_are_listed_with_their_lines(tmp_path: Path) -> None:
    data = write(tmp_path / "chats.jsonl", [chat(1), {"messages": []}, chat(2), {"other": 1}])
    (found,) = look(data)
    assert (found.num_samples, found.num_bad) == (2, 2)
    assert [problem.line for problem in found.problems] == [2, 4]


def test_a_task_refuses_what_it_cannot_learn_from(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "Say a number.", "chosen": "7", "rejected": "a cat"}])
    chats = write(tmp_path / "chats.jsonl", [chat(1)])
    assert look(pairs, task=Task.DPO)[0].num_bad == look(chats)[0].num_bad == 0
    assert "does not learn from" in look(pairs)[0].problems[0].reason
    assert "chosen and a rejected" in look(chats, task=Task.KTO)[0].problems[0].reason


def test_a_mixture_is_looked_at_file_by_file_and_nothing_is_fetched(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.jsonl", [chat(1)]), write(tmp_path / "b.jsonl", [chat(1), chat(2)])
    found = look_at_data(CheckData(data=f"{one}:0.5,hf:some/thing:0.2,{other}:0.3"), threading.Event())
    assert [file.num_records for file in found.files] == [1, 2]
    assert found.unfetched == ("hf:some/thing",)


def test_what_holds_no_records_is_a_problem_and_what_is_not_there_an_error(tmp_path: Path) -> None:
    (tmp_path / "zeros.json").write_bytes(b"\0" * 100)
    (found,) = look(str(tmp_path / "zeros.json"))
    assert (found.format, found.num_bad) == ("", 1)
    with pytest.raises(NoSuchData):
        look(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(NoSuchModel):
        look(write(tmp_path / "chats.jsonl", [chat(1)]), model="no-such-model")
