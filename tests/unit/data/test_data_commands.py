"""`callboard data` as a person or a script meets it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from callboard.actors.data import show
from callboard.actors.data.rendering import Rendered, Renderer
from callboard.actors.data.samples import Conversation, assistant, user
from callboard.runtime.cli import main

GOLDEN = Path(__file__).parent / "golden"


def test_check_counts_what_is_in_good_files(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(GOLDEN / "sharegpt.json"), str(GOLDEN / "plain_text.txt")]
    assert main(["data", "check", *files, "--model", str(model)]) == 0
    shown, more = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        re.escape(files[0]) + r": sharegpt \(JSON\): 2 records, \d+ tokens, 11 with loss, 0 problems", shown
    )
    assert more == f"{files[1]}: plain text (plain text): 1 record, 39 tokens, 39 with loss, 0 problems"
    assert main(["data", "check", files[0]]) == 0
    assert capsys.readouterr().out == f"{files[0]}: sharegpt (JSON): 2 records, 0 problems\n"


@pytest.mark.parametrize("with_model", [False, True])
def test_check_lists_bad_records_and_fails(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_model: bool
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n{"instruction": "q"}\nno\n')
    options = ["--model", str(model)] if with_model else []
    assert main(["data", "check", str(path), *options]) == 1
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}: alpaca (JSON lines): 3 records")
    assert first.endswith("2 problems")
    assert second.startswith(f"{path}:2: ")
    assert third.startswith(f"{path}:3: it is no JSON")
    assert main(["data", "check", str(path), *options, "--json"]) == 1
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["format"], report["num_problems"], report["counts"]["num_records"]) == ("alpaca", 2, 3)
    assert [problem[0] for problem in report["problems"]] == [2, 3]


def test_check_counts_all_problems_and_lists_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_text('{"text": "a"}\n' + "bad\n" * 250)
    assert main(["data", "check", str(path)]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 101
    assert "and 150 more" in captured.err


def test_check_says_what_becomes_of_long_samples(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(GOLDEN / "text.jsonl")
    for too_long, expected in (("truncate", "1 truncated"), ("drop", "1 dropped"), ("split", "1 split")):
        options = ["--model", str(model), "--max-tokens", "10", "--too-long", too_long]
        assert main(["data", "check", path, *options]) == 0
        assert f", {expected}, 0 problems" in capsys.readouterr().out


def test_a_file_of_no_format_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_text('{"foo": 1}\n')
    assert main(["data", "check", str(path)]) == 1
    assert f"{path}:1: its records fit no format" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "none")]) == 1
    assert "is not there" in capsys.readouterr().err


def test_what_a_model_cannot_be_trained_on_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from byte_tokenizer import write_tokenizer

    silent = write_tokenizer(tmp_path / "silent.gguf", "{{ messages | length }}")
    assert main(["data", "check", str(GOLDEN / "guanaco.jsonl"), "--model", str(silent)]) == 1
    assert "does not show where message 2" in capsys.readouterr().out


def test_show_as_json_is_a_line_for_each_sample(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = GOLDEN / "alpaca.json"
    expected = json.loads((GOLDEN / "alpaca.expected.json").read_text())
    assert main(["data", "show", str(path), "-n", "2", "--model", str(model), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2
    for line, wanted in zip(lines, expected, strict=False):
        assert set(line) == {"text", "loss_text", "num_tokens", "num_loss_tokens"}
        assert line["text"] == "\n".join(wanted["text"])
        assert (line["loss_text"], line["num_loss_tokens"]) == (wanted["loss_text"], wanted["num_loss_tokens"])
    pairs = GOLDEN / "preference.jsonl"
    assert main(["data", "show", str(pairs), "-n", "1", "--model", str(model), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["loss_text"], shown["rejected"]["loss_text"]) == (["A cat.<|im_end|>"], ["A rock.<|im_end|>"])


def test_show_marks_what_carries_loss(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    assert main(["data", "show", str(GOLDEN / "sharegpt.json"), "--model", str(model)]) == 0
    plain = capsys.readouterr().out
    assert "<|im_start|>assistant\n⟦run(1)<|im_end|>⟧\n<|im_start|>tool\nrun(1) = 7<|im_end|>" in plain
    assert plain.count("with loss") == 2
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main(["data", "show", str(GOLDEN / "sharegpt.json"), "--model", str(model)]) == 0
    assert "⟦" not in (colours := capsys.readouterr().out)
    assert "\x1b[1;32m" in colours


def test_each_token_has_the_colour_of_its_loss(renderer: Renderer) -> None:
    found = renderer.render(Conversation((user("é"), assistant("ok"))))
    assert isinstance(found, Rendered)
    text = show.coloured(found)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    other = "".join(text.plain[span.start : span.end] for span in text.spans if "green" not in str(span.style))
    assert green == "ok<|im_end|>"
    assert other == "<|im_start|>user\né<|im_end|>\n<|im_start|>assistant\n\n"


def test_show_stops_at_a_bad_record(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x"
    path.write_text('{"text": "a"}\n{"text": 3}\n')
    assert main(["data", "show", str(path), "--model", str(model), "--json"]) == 1
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 1
    assert f"{path}:2: " in captured.err
    assert "data check" in captured.err


def test_a_mixture_is_checked_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        shutil.copy(GOLDEN / "text.jsonl", tmp_path / name)
    assert main(["data", "check", f"{tmp_path}/a:0.7,{tmp_path}/b:0.3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
