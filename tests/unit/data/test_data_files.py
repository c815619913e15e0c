"""What a file is follows from its content; what is wrong in it has a line and a reason; it is never in memory whole."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from itertools import count
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.actors.data import containers, json_stream
from callboard.actors.data.containers import Kind, open_container
from callboard.actors.data.data_file import Problem, open_data
from callboard.actors.data.errors import NoSuchData, UnknownFormat
from callboard.actors.data.samples import Conversation, Document
from callboard.runtime.errors import MissingExtra

ALPACA = {"instruction": "q", "input": "", "output": "a"}
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("content", "kind", "format", "number"),
    [
        (lines(ALPACA, ALPACA), Kind.JSON_LINES, "alpaca", 2),
        (json.dumps([ALPACA] * 3), Kind.JSON, "alpaca", 3),
        (json.dumps([ALPACA] * 3, indent=2), Kind.JSON, "alpaca", 3),
        ("\ufeff" + json.dumps([ALPACA]), Kind.JSON, "alpaca", 1),
        ("\n\n" + lines(ALPACA) + "\n", Kind.JSON_LINES, "alpaca", 1),
        (json.dumps(ALPACA), Kind.JSON_LINES, "alpaca", 1),
        (json.dumps(ALPACA, indent=1), Kind.JSON, "alpaca", 1),
        (json.dumps(ALPACA, indent=1) + "\n" + json.dumps(ALPACA, indent=1), Kind.JSON, "alpaca", 2),
        (json.dumps(CHAT), Kind.ONE_RECORD, "openai", 1),
        (json.dumps(CHAT, indent=2), Kind.ONE_RECORD, "openai", 1),
        (lines(CHAT, CHAT), Kind.JSON_LINES, "openai", 2),
        (json.dumps([CHAT, CHAT]), Kind.JSON, "openai", 2),
        (json.dumps([{"messages": CHAT}]), Kind.JSON, "openai", 1),
        (lines({"text": "### Human: a### Assistant: b"}), Kind.JSON_LINES, "guanaco", 1),
        (lines({"text": "a ### Human: b"}), Kind.JSON_LINES, "text", 1),
        ("instruction,input,output\nq,,a\n", Kind.CSV, "alpaca", 1),
        ("output\tinstruction\na\tq\n", Kind.CSV, "alpaca", 1),
        ("output;instruction\na;q\n", Kind.CSV, "alpaca", 1),
        ('prompt,chosen,rejected\nq,"a, b",c\n', Kind.CSV, "preference", 1),
        ("text\nhello\n", Kind.CSV, "text", 1),
        ("Chapter 1\n\nIt was, as such, a night.\n", Kind.TEXT, "plain text", 1),
        ("[Chapter 1]\n\nIt was\n", Kind.TEXT, "plain text", 1),
        ("{ a brace }\nmore\n", Kind.TEXT, "plain text", 1),
    ],
)
def test_what_a_file_is_follows_from_its_content(
    tmp_path: Path, content: str, kind: Kind, format: str, number: int
) -> None:
    path = tmp_path / "data.parquet"  # the name says nothing
    path.write_text(content)
    file = open_data(path)
    samples = [sample for _, sample in file.samples()]
    assert (file.container.kind, file.format.name, len(samples)) == (kind, format, number)
    assert not [sample for sample in samples if isinstance(sample, Problem)]


def test_a_table_of_messages_holds_json_in_its_cells(tmp_path: Path) -> None:
    cell = json.dumps(CHAT).replace('"', '""')
    (tmp_path / "x").write_text(f'id,messages\n1,"{cell}"\n')
    ((_, sample),) = open_data(tmp_path / "x").samples()
    assert isinstance(sample, Conversation)
    assert [turn.content for turn in sample.turns] == ["q", "a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n \n", "is empty"),
        (b"\x1f\x8b\x08abc", "packed .gzip."),
        (b"PK\x03\x04abc", "packed .zip."),
        (b"ab\0c", "neither text nor Parquet"),
        ("Grüße".encode("latin-1"), "no UTF-8"),
        (b'{"a": 1}\n', "fit no format: the first is an object with the keys a"),
        (b"[[1]]", "fit no format: the first is a list of 1"),
        (b'{"text": "a"\n{"text": "b"\n', "none of its first records is JSON"),
    ],
)
def test_what_is_no_training_data_is_said_so(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UnknownFormat, match=message) as caught:
        open_data(tmp_path / "x")
    assert caught.value.hint


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(NoSuchData, match="cannot be read"):
            open_data(path)


BAD = [
    # (a file of which one record is bad, its line, what is said of it)
    (lines(ALPACA, {"instruction": "q", "output": 3}), 2, "output: Expected 'str', got 'int'"),
    (lines(ALPACA, {"foo": 1}), 2, "fits no format: an object with the keys foo (the file's is alpaca)"),
    (lines(ALPACA, {"messages": CHAT}, ALPACA), 2, "is of the format openai (the file's is alpaca)"),
    (lines(ALPACA) + "\n" + '{"instruction": "q", \n' + lines(ALPACA), 3, "it is no JSON"),
    (lines(ALPACA) + "nothing\n", 2, "it is no JSON"),
    (lines(ALPACA, {**ALPACA, "output": " "}), 2, "a turn of the assistant is empty"),
    (lines(ALPACA, {**ALPACA, "instruction": ""}), 2, "the instruction is empty"),
    (lines(ALPACA, {**ALPACA, "output": "<nooutput>"}), 2, "the output is <nooutput>"),
    (lines(CHAT, CHAT[:1]), 2, "there is no turn of the assistant"),
    (lines(CHAT, [CHAT[0], {**CHAT[1], "loss": False}]), 2, "no turn of the assistant carries loss"),
    (lines(CHAT, [{**CHAT[0], "loss": True}, CHAT[1]]), 2, "role 'user' has loss"),
    (lines(CHAT, [{"role": "wizard", "content": "x"}, CHAT[1]]), 2, "messages[0].role: Invalid enum value 'wizard'"),
    (lines(CHAT, [{"role": "user", "content": [{"type": "image_url"}]}, CHAT[1]]), 2, "type 'image_url'"),
    (
        lines(CHAT, [CHAT[0], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "["}}]}]),
        2,
        "the arguments of a call of 'f' are no JSON object",
    ),
    (lines({"text": "### Human: a### Assistant: b"}, {"text": "### Human: a"}), 2, "no turn of the assistant"),
    (lines({"text": "### Human: a### Assistant: b"}, {"text": "hm"}), 2, "does not begin with '### Human:'"),
    (
        lines({"chat": {"turn_1": {"Human": "a", "MOSS": "b"}}}, {"chat": {"turn_1": {"Human": "a"}}}),
        2,
        "chat[...]: Object missing required field 'MOSS'",
    ),
    (
        lines(
            {"chat": {"turn_1": {"Human": "a", "MOSS": "b"}}},
            {"num_turns": 2, "chat": {"turn_1": {"Human": "a", "MOSS": "b"}}},
        ),
        2,
        "num_turns is 2",
    ),
    (
        lines(
            {"chat": {"turn_1": {"Human": "a", "MOSS": "b"}}},
            {"chat": {"turn_1": {"Human": "a", "MOSS": "b", "Tool Responses": "c"}}},
        ),
        2,
        "neither thoughts nor commands",
    ),
    (
        lines(
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "bard", "value": "a"}]},
        ),
        2,
        "nobody is known by the name 'bard'",
    ),
    (
        lines(
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
            {"conversations": [{"from": "assistant", "value": "<|startofthink|>{}<|endofthink|><|startofexec|>"}]},
        ),
        2,
        "has no <|endof...|>",
    ),
    (
        lines(
            {"conversations": [{"from": "user", "value": "a"}, {"from": "assistant", "value": "b"}]},
            {"conversations": [{"from": "assistant", "value": "<|startofthink|>x<|endofthink|>"}]},
        ),
        2,
        "a segment of the assistant's turn is no JSON",
    ),
    (
        lines({"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q", "chosen": "a", "rejected": "a"}),
        2,
        "are the same",
    ),
    (lines({"prompt": "q", "chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "b"}), 2, "there is no prompt"),
    (lines({"text": "a"}, {"text": " "}), 2, "the text is empty"),
    (
        json.dumps([{"conversation": [{"input": "a", "output": "b"}]}, {"conversation": [{"output": "b"}]}]),
        1,
        "conversation[0]: Object missing required field 'input'",
    ),
    ("[\n" + lines(ALPACA).strip() + ",\n" + '{"instruction": nope}' + "\n]", 3, "it is no JSON"),
    ("[\n" + lines(ALPACA).strip() + ",\n]", 3, "no record between two commas, or behind the last"),
    ("[\n" + lines(ALPACA) + "]\n\nmore", 5, "something follows the end of the array"),
    ("[\n" + lines(ALPACA).strip() + ",\n" + '{"instruction": "q', 3, "the file ends inside this record"),
    ("[\n" + lines(ALPACA).strip() + ",\n", 3, "the file ends without the array's ]"),
    ("instruction,output\nq,a\nq\nq,a\n", 3, "the row has 1 cells under 2 columns"),
    ('instruction,output\nq,"a\nb"\nq,\n', 4, "a turn of the assistant is empty"),
]


@pytest.mark.parametrize(("content", "line", "reason"), BAD)
def test_a_bad_record_has_its_line_and_a_reason(tmp_path: Path, content: str, line: int, reason: str) -> None:
    (tmp_path / "x").write_text(content)
    samples = [sample for _, sample in open_data(tmp_path / "x").samples()]
    (problem,) = [sample for sample in samples if isinstance(sample, Problem)]
    assert problem.line == line
    assert reason in problem.reason
    assert len(samples) > 1, "the others are still there"


def test_bytes_that_are_no_text_end_a_plain_file_with_a_problem(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"One\n\nTwo \xff three\n")
    (problem,) = [sample for _, sample in open_data(tmp_path / "x").samples()]
    assert isinstance(problem, Problem)
    assert "no UTF-8" in problem.reason


def test_a_long_plain_text_comes_in_pieces_that_join_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "PIECE_BYTES", 100)
    text = "".join(f"Line {n}.\n" + "\n" * (n % 3 == 0) for n in range(200))
    (tmp_path / "x").write_text(text)
    pieces = [(line, sample) for line, sample in open_data(tmp_path / "x").samples()]
    documents = [sample for _, sample in pieces if isinstance(sample, Document)]
    assert "".join(document.text for document in documents) == text
    assert [(d.begins, d.ends) for d in (documents[0], documents[1], documents[-1])] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert max(len(document.text) for document in documents) <= 220
    for (line, _), document in zip(pieces, documents, strict=True):
        assert text.splitlines(keepends=True)[line - 1] == document.text.splitlines(keepends=True)[0]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['\\"', "]", "[{", ",", '"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON_VALUES, max_size=6), st.sampled_from([None, 1]), st.booleans(), st.integers(1, 9))
def test_an_array_read_in_chunks_is_the_array(
    values: list[object], indent: int | None, ascii: bool, chunk: int
) -> None:
    content = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK_BYTES", chunk)
        records = list(json_stream.json_values(io.BytesIO(content)))
    assert not [record for record in records if record.problem]
    assert [json.loads(record.json.decode("utf-8", "surrogatepass")) for record in records] == values
    for record in records:
        assert content.split(b"\n")[record.line - 1].strip().startswith(record.json[:1] if indent else b"[")


STREAMED = """
import resource, sys
from pathlib import Path
from callboard.actors.data.data_file import Problem, open_data
file = open_data(Path(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
number = sum(not isinstance(sample, Problem) for _, sample in file.samples())
print(number, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("way", ["lines", "array", "csv", "text"])
def test_a_file_is_never_in_memory_as_a_whole(tmp_path: Path, way: str) -> None:
    """48 MB are read in less than a quarter of that beyond what the program itself takes."""
    path, size, text = tmp_path / "x", 48 << 20, "a word " * 600
    with path.open("w") as out:
        out.write({"lines": "", "array": "[", "csv": "instruction,output\n", "text": ""}[way])
        for number in count():
            if out.tell() >= size:
                break
            record = json.dumps({"instruction": "q", "output": text})
            out.write("," if way == "array" and number else "")
            out.write({"lines": record + "\n", "array": record, "csv": f"q,{text}\n", "text": text + "\n\n"}[way])
        out.write("]" if way == "array" else "")
    done = subprocess.run([sys.executable, "-c", STREAMED, str(path)], capture_output=True, text=True, check=True)
    found, grown_kb = map(int, done.stdout.split())
    assert found > (100 if way == "text" else 10_000)
    assert grown_kb < size // 4 // 1024


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "x").write_bytes(b"PAR1....PAR1")
    assert open_container(tmp_path / "x").kind is Kind.PARQUET
    with pytest.raises(MissingExtra, match="Parquet") as caught:
        open_data(tmp_path / "x")
    assert "callboard[parquet]" in caught.value.hint


def test_rows_of_a_parquet_file_are_records(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": CHAT, "id": None}, {"messages": CHAT[:1], "id": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x")
    file = open_data(tmp_path / "x")
    (_, good), (line, bad) = file.samples()
    assert file.format.name == "openai"
    assert isinstance(good, Conversation)
    assert (line, bad) == (2, Problem(2, "there is no turn of the assistant"))
    (tmp_path / "x").write_bytes(b"PAR1....PAR1")
    with pytest.raises(UnknownFormat, match="damaged Parquet"):
        open_data(tmp_path / "x")


def test_samples_travel_as_messages_do(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(lines(CHAT))
    ((_, sample),) = open_data(tmp_path / "x").samples()
    assert isinstance(sample, Conversation)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(sample), type=Conversation) == sample
