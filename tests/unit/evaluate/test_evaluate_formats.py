"""Each format's records become the prompts, choices and right answers that were written here by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from callboard.actors.data.errors import BadRecord, NoSuchData, UnknownFormat
from callboard.actors.evaluate.asking import Exam, prepare
from callboard.actors.evaluate.documents import documents
from callboard.actors.evaluate.question import Question
from callboard.actors.evaluate.reading import read_test_set
from callboard.actors.evaluate.windows import windows
from callboard.runtime.errors import UsageError
from callboard.schemas.evaluate import Evaluate

ARC = {
    "id": "1",
    "question": {
        "stem": "Which is hot?",
        "choices": [{"text": "ice", "label": "1"}, {"text": "a fire", "label": "2"}],
    },
    "answerKey": "2",
}
ARC_HF = {
    "question": "Which is hot?",
    "choices": {"text": ["ice", "a fire"], "label": ["A", "B"]},
    "answerKey": "B",
}
HELLASWAG = {
    "activity_label": "Baking",
    "ctx_a": "[header] How to bake [title] Mix.",
    "ctx_b": "she",
    "endings": ["sleeps.", "[substeps] stirs  the dough."],
    "label": "1",
}
PIQA = {"goal": "Open a jar", "sol1": "Turn the lid.", "sol2": "Eat it.", "label": 0}
WINOGRANDE = {
    "sentence": "The cup did not fit the box because _ was too big.",
    "option1": "the cup",
    "option2": "the box",
    "answer": "1",
}
CHOICES = {"question": "Two and two?", "choices": ["3", "four", "5"], "answer": "four"}
MMLU = {"question": "Two and two?", "choices": ["3", "4"], "answer": 1, "subject": "plain_sums"}
GSM8K = {"question": "Ann has 1,000 pens and buys 5.", "answer": "1000 + 5 = <<1000+5=1005>>1005\n#### 1,005"}
ASKED = {"question": "Who?", "answer": ["Ann", "Ann Lee"], "context": "Ann Lee came."}
TEXT = {"text": "It was late, and he went home"}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(tmp_path: Path, *records: object, task: str = "", name: str = "data.jsonl") -> tuple[str, list[Question]]:
    found = read_test_set(write(tmp_path / name, *records), task)
    return found.format.name, list(found.questions)


CASES: dict[str, tuple[dict[str, Any], str, Question]] = {
    "arc": (
        ARC,
        "arc",
        Question(prompt="Question: Which is hot?\nAnswer:", choices=("ice", "a fire"), right=1, example="a fire"),
    ),
    "arc-hf": (
        ARC_HF,
        "arc",
        Question(prompt="Question: Which is hot?\nAnswer:", choices=("ice", "a fire"), right=1, example="a fire"),
    ),
    "hellaswag": (
        HELLASWAG,
        "hellaswag",
        Question(
            prompt="Baking: How to bake. Mix. She",
            choices=("sleeps.", "stirs the dough."),
            right=1,
            example="stirs the dough.",
        ),
    ),
    "hellaswag-ctx": (
        {"ctx": "She", "endings": ["a", "b"], "label": 0},
        "hellaswag",
        Question(prompt="She", choices=("a", "b"), right=0, example="a"),
    ),
    "piqa": (
        PIQA,
        "piqa",
        Question(
            prompt="Question: Open a jar\nAnswer:",
            choices=("Turn the lid.", "Eat it."),
            right=0,
            example="Turn the lid.",
        ),
    ),
    "winogrande": (
        WINOGRANDE,
        "winogrande",
        Question(
            prompt="The cup did not fit the box because _ was too big.",
            choices=("the cup", "the box"),
            right=0,
            contexts=("The cup did not fit the box because the cup", "The cup did not fit the box because the box"),
            ending=" was too big.",
        ),
    ),
    "choices-text": (
        CHOICES,
        "choices",
        Question(prompt="Question: Two and two?\nAnswer:", choices=("3", "four", "5"), right=1, example="four"),
    ),
    "choices-letter": (
        {**CHOICES, "answer": "b"},
        "choices",
        Question(prompt="Question: Two and two?\nAnswer:", choices=("3", "four", "5"), right=1, example="four"),
    ),
    "choices-number": (
        {**CHOICES, "answer": 2},
        "choices",
        Question(prompt="Question: Two and two?\nAnswer:", choices=("3", "four", "5"), right=2, example="5"),
    ),
    "mmlu": (
        MMLU,
        "mmlu",
        Question(
            intro="The following are multiple choice questions (with answers) about plain sums.\n\n",
            prompt="Two and two?\nA. 3\nB. 4\nAnswer:",
            choices=("A", "B"),
            right=1,
            example="B",
        ),
    ),
    "gsm8k": (
        GSM8K,
        "gsm8k",
        Question(
            prompt="Question: Ann has 1,000 pens and buys 5.\nAnswer:",
            answers=("1005",),
            example="1000 + 5 = <<1000+5=1005>>1005\n#### 1,005",
        ),
    ),
    "answers": (
        ASKED,
        "answers",
        Question(
            prompt="Ann Lee came.\n\nQuestion: Who?\nAnswer:", answers=("Ann", "Ann Lee"), example="Ann"
        ),
    ),
    "answers-input": (
        {"input": "Say yes:\n", "output": "yes"},
        "answers",
        Question(prompt="Say yes:\n", lead="", answers=("yes",), example="yes"),
    ),
    "answers-squad": (
        {"question": "Who?", "answers": {"text": ["Ann", "Ann"], "answer_start": [0, 0]}},
        "answers",
        Question(prompt="Question: Who?\nAnswer:", answers=("Ann",), example="Ann"),
    ),
    "perplexity": (TEXT, "perplexity", Question(prompt="It was late, and he went home", lead="")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_record_becomes_the_question_that_was_written_by_hand(case: str, tmp_path: Path) -> None:
    record, name, expected = CASES[case]
    found, questions = read(tmp_path, record)
    assert (found, questions) == (name, [msgspec.structs.replace(expected, line=1)])


def test_mmlu_is_rows_without_a_header_and_its_file_names_the_subject(tmp_path: Path) -> None:
    path = tmp_path / "high_school_sums_test.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["Two and\ntwo?", "3", "4", "5", "6", "B"])
        rows.writerow(["One, and one?", "2", "3", "4", "5", "A"])
    found = read_test_set(path)
    assert found.format.name == "mmlu"
    assert [question.line for question in found.questions] == [1, 3]
    first = found.questions[0]
    assert first.intro == "The following are multiple choice questions (with answers) about high school sums.\n\n"
    assert first.prompt == "Two and\ntwo?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
    assert (first.choices, first.right, first.example) == (("A", "B", "C", "D"), 1, "B")
    headed = tmp_path / "sums.csv"
    headed.write_text("question,A,B,C,D,answer\n" + path.read_text())
    assert [question.line for question in read_test_set(headed).questions] == [2, 4]
    assert read_test_set(headed).questions[0].intro == ""


def test_the_last_word_is_asked_for_where_that_is_said(tmp_path: Path) -> None:
    _, (question,) = read(tmp_path, TEXT, task="last_word")
    assert (question.prompt, question.lead, question.choices) == ("It was late, and he went", " ", ("home",))
    plain = tmp_path / "passages.txt"
    plain.write_text("One two three\n\nfour five\n")
    found = read_test_set(plain, "last_word").questions
    assert [(one.line, one.prompt, one.choices) for one in found] == [
        (1, "One two", ("three",)),
        (3, "four", ("five",)),
    ]


def test_a_plain_text_is_one_text_in_parts_that_are_all_of_it(tmp_path: Path) -> None:
    line = "A line of some words.\n"
    path = tmp_path / "text.txt"
    path.write_text(line * 2000)
    found = read_test_set(path).questions
    assert "".join(question.prompt for question in found) == path.read_text()
    assert [question.line for question in found] == [1, 745, 1489]
    assert [part for _, part in documents("one two three", 8)] == ["one two ", "three"]
    assert [part for _, part in documents("abcdefghij", 4)] == ["abcd", "efgh", "ij"]


def test_windows_score_every_token_but_the_first_once() -> None:
    for num_tokens in range(1, 40):
        for size in range(2, 12):
            scored: list[int] = []
            for begin, end, first in windows(num_tokens, size):
                assert end - begin <= size
                assert begin < first <= end
                assert first == 1 or first - begin >= size // 2
                scored += range(first, end)
            assert scored == list(range(1, num_tokens))


def exam(tmp_path: Path, *records: object, **options: Any) -> Exam:
    path = write(tmp_path / "data.jsonl", *records)
    return prepare(Evaluate(models=("m",), data=str(path), **options))


def numbered(count: int) -> list[dict[str, Any]]:
    return [{"question": f"Question {n}?", "choices": ["yes", "no"], "answer": n % 2} for n in range(count)]


def test_examples_stand_before_the_question_in_the_order_of_their_file(tmp_path: Path) -> None:
    shots = write(tmp_path / "shots.jsonl", *numbered(3))
    asked = exam(tmp_path, CHOICES, shots=3, shots_from=str(shots))
    assert asked.before(asked.questions[0]) == (
        "Question: Question 0?\nAnswer: yes\n\n"
        "Question: Question 1?\nAnswer: no\n\n"
        "Question: Question 2?\nAnswer: yes\n\n"
    )
    assert [(turn.role, turn.content) for turn in asked.turns(asked.questions[0])][1:3] == [
        ("assistant", "yes"),
        ("user", "Question: Question 1?\nAnswer:"),
    ]
    two = exam(tmp_path, CHOICES, shots=2, shots_from=str(shots), seed=1)
    assert two.examples == exam(tmp_path, CHOICES, shots=2, shots_from=str(shots), seed=1).examples
    other = {**WINOGRANDE, "sentence": "She took the box since _ was light.", "answer": 2}
    winogrande = exam(tmp_path, WINOGRANDE, shots=1, shots_from=str(write(tmp_path / "w.jsonl", other)))
    assert winogrande.examples[0].as_example == "She took the box since the box was light."


def test_a_sample_among_the_examples_is_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", *numbered(6))
    asked = prepare(Evaluate(models=("m",), data=str(path), shots=2, shots_from=str(path), seed=3))
    assert len(asked.questions) == 4
    assert not {one.prompt for one in asked.questions} & {one.prompt for one in asked.examples}
    assert [one.line for one in asked.left_out] == [one.line for one in asked.examples]


def test_a_limit_draws_the_same_samples_for_the_same_seed(tmp_path: Path) -> None:
    drawn = [
        tuple(question.line for question in exam(tmp_path, *numbered(40), limit=7, seed=seed).questions)
        for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] == tuple(sorted(drawn[0]))
    assert drawn[0] != drawn[2]
    assert exam(tmp_path, *numbered(40), limit=7).digest != exam(tmp_path, *numbered(40)).digest


BAD: dict[str, tuple[list[object], str, type[Exception]]] = {
    "no known fields": ([CHOICES, {"a": 1}], r"data.jsonl:2: 'choices' is no list of texts|'question'", BadRecord),
    "no format": ([{"a": 1, "b": 2}], r":1: it fits no format of samples: its fields are a, b", UnknownFormat),
    "another format": ([PIQA, CHOICES], r"data.jsonl:2: it is of the format choices \(the file's is piqa\)", BadRecord),
    "no object": ([PIQA, [1]], r"data.jsonl:2: it is no JSON object", BadRecord),
    "label out of range": ([PIQA, {**PIQA, "label": 2}], r"data.jsonl:2: 'label' is 2, out of range", BadRecord),
    "letter out of range": ([{**CHOICES, "answer": "D"}], r"'answer' is 'D', out of range: .* A, B, C", BadRecord),
    "number out of range": ([{**CHOICES, "answer": 3}], r"'answer' is 3, out of range", BadRecord),
    "true is no number": ([{**CHOICES, "answer": True}], r"'answer' is True", BadRecord),
    "key out of range": ([{**ARC, "answerKey": "3"}], r"'answerKey' is '3', out of range: .* 1, 2", BadRecord),
    "no label": ([{**HELLASWAG, "label": ""}], r"'label' is ''", BadRecord),
    "answer from 1": ([{**WINOGRANDE, "answer": "0"}], r"'answer' is 0, out of range: it should be 1 to 2", BadRecord),
    "two blanks": ([{**WINOGRANDE, "sentence": "_ and _."}], r"has 2 blanks", BadRecord),
    "nothing behind the blank": ([{**WINOGRANDE, "sentence": "It was _"}], r"nothing follows the blank", BadRecord),
    "one choice": ([{**CHOICES, "choices": ["a"]}], r"'choices' has 1 entries", BadRecord),
    "empty choice": ([{**CHOICES, "choices": ["a", " "]}], r"'choices' is no list of texts", BadRecord),
    "no number": ([{**GSM8K, "answer": "#### none"}], r"'answer' has no number", BadRecord),
    "empty answer": ([{"question": "Who?", "answer": ""}], r"'answer' has an answer that is no text", BadRecord),
    "empty text": ([{"text": " "}], r"data.jsonl:1: 'text' is missing or no text", BadRecord),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_record_that_cannot_be_asked_is_one_line_with_its_place(case: str, tmp_path: Path) -> None:
    records, complaint, error = BAD[case]
    with pytest.raises(error, match=complaint) as caught:
        read(tmp_path, *records)
    assert "\n" not in str(caught.value)
    assert getattr(caught.value, "hint", "")


@pytest.mark.parametrize(
    ("name", "content", "complaint", "error"),
    [
        ("empty.jsonl", "", "is empty", UnknownFormat),
        ("empty.csv", "\n\n", "is empty", UnknownFormat),
        ("rows.csv", "a,b,c\n", r"rows.csv:1: it has 3 columns", UnknownFormat),
        ("rows.csv", "q,1,2,3,4,E\n", r"rows.csv:1: the answer is 'E', out of range", BadRecord),
        ("cut.jsonl", json.dumps(PIQA) + '\n{"goal": ', r"cut.jsonl:2: it is no JSON", BadRecord),
        ("none.json", "[]", "has no records|is empty", UnknownFormat),
    ],
)
def test_a_file_that_cannot_be_asked_is_one_line(
    tmp_path: Path, name: str, content: str, complaint: str, error: type[Exception]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=complaint):
        read_test_set(tmp_path / name)


def test_what_is_asked_of_the_wrong_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoSuchData, match="cannot be read"):
        read_test_set(tmp_path / "nowhere.jsonl")
    with pytest.raises(UsageError, match="no task 'hellaswog'") as caught:
        read(tmp_path, PIQA, task="hellaswog")
    assert "hellaswag" in caught.value.hint
    with pytest.raises(BadRecord, match=r"data.jsonl:1: it is of the format piqa \(the file's is arc\)"):
        read(tmp_path, PIQA, task="arc")
    plain = tmp_path / "text.txt"
    plain.write_text("Some words.\n")
    with pytest.raises(UnknownFormat, match="no record of the task piqa"):
        read_test_set(plain, "piqa")


def test_settings_that_cannot_be_are_said(tmp_path: Path) -> None:
    shots = str(write(tmp_path / "shots.jsonl", *numbered(2)))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"shots": 3, "shots_from": shots}, "has 2 samples, fewer than the 3 examples"),
        ({"shots": 1}, "no file is named"),
        ({"shots_from": shots}, "none is wanted"),
        ({"limit": -1}, "limit is -1"),
        ({"max_tokens": 5}, "no answers whose length"),
    ]
    for options, complaint in wrong:
        with pytest.raises(UsageError, match=complaint):
            exam(tmp_path, CHOICES, **options)
    with pytest.raises(UsageError, match="not in a chat"):
        exam(tmp_path, WINOGRANDE, chat=True)
    with pytest.raises(UsageError, match="no examples before it"):
        exam(tmp_path, TEXT, shots=1, shots_from=shots)
    path = str(write(tmp_path / "all.jsonl", *numbered(2)))
    with pytest.raises(UsageError, match="among the examples"):
        prepare(Evaluate(models=("m",), data=path, shots=2, shots_from=shots))
    for models in ((), ("m", "m")):
        with pytest.raises(UsageError, match="each once"):
            prepare(Evaluate(models=models, data=path))
