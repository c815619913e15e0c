"""What the page of chats is made of: the tree of turns, its files, an answer cut into pieces, options as typed."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from callboard.runtime.errors import CallboardError
from callboard.tui.chat.attachments import read_attachment
from callboard.tui.chat.conversation import Attachment, Conversation, Options, code_blocks
from callboard.tui.chat.history import History
from callboard.tui.chat.options import FIELDS, read_option, written
from callboard.tui.chat.pieces import LONGEST_PIECE, Pieces, pieces_of
from callboard.tui.chat.slash import completions, parse

LINES = st.lists(
    st.sampled_from(["word " * 50 + "\n", "\n", "```python\n", "```\n", "~~~\n", "x" * 9000, "# Head\n", "a\n"]),
    max_size=80,
)


@given(LINES, st.integers(1, 7000))
def test_pieces_hold_all_of_the_text_in_order_however_it_comes(lines: list[str], size: int) -> None:
    text = "".join(lines)
    pieces = Pieces()
    shown = [""]
    for start in range(0, len(text), size):
        for number, part in pieces.feed(text[start : start + size]):
            while len(shown) <= number:
                shown.append("")
            shown[number] += part
    assert shown == pieces.texts[: len(shown)]
    assert all(len(piece) <= 2 * LONGEST_PIECE + 100 for piece in shown)
    # What is added are fences that are closed and opened again, nothing else.
    without = [line for line in "".join(shown).splitlines() if not line.startswith(("```", "~~~"))]
    assert "".join(without) == "".join(line for line in text.splitlines() if not line.startswith(("```", "~~~")))


def test_a_fence_that_is_too_long_is_code_in_every_piece() -> None:
    text = "```python\n" + "print('a long line of a program')\n" * 1000 + "```\nThe end.\n"
    pieces = pieces_of(text)
    assert len(pieces) > 3
    for piece in pieces[:-1]:
        assert piece.startswith("```python\n")
        assert piece.endswith("```\n")
    assert "The end." in pieces[-1]


def test_two_windows_that_went_on_with_one_chat_keep_what_both_said(tmp_path: Path) -> None:
    history = History(tmp_path)
    here = Conversation.new()
    here.add("user", "first")
    history.save(here)
    (there,), complaints = history.load_all()
    assert not complaints
    there.add("assistant", "said there")
    history.save(there)
    here.add("assistant", "said here")
    kept = history.save(here)
    assert {turn.text for turn in kept.turns.values()} == {"first", "said there", "said here"}
    assert [turn.text for turn in kept.path()] == ["first", "said here"]
    assert kept.show_branch(kept.path()[-1], -1)
    assert kept.path()[-1].text == "said there"


def test_a_damaged_file_is_said_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    found, complaints = History(tmp_path).load_all()
    assert not found
    assert "x.json" in complaints[0]
    assert (tmp_path / "x.json").read_text() == "{"


def test_a_fork_has_turns_of_its_own_and_the_original_stays() -> None:
    chat = Conversation.new()
    chat.add("user", "a")
    chat.add("assistant", "b")
    fork = chat.fork()
    fork.add("user", "c")
    assert [turn.text for turn in fork.path()] == ["a", "b", "c"]
    assert [turn.text for turn in chat.path()] == ["a", "b"]
    assert not set(chat.turns) & set(fork.turns)


def test_a_request_has_the_system_prompt_the_files_and_the_options() -> None:
    chat = Conversation.new()
    chat.options = Options(system="Be short.", temperature=0.5, stop=("END",))
    chat.add("user", "Read it", attachments=(Attachment("a.md", "```\ncode\n```"),))
    request = chat.request()
    assert [message.role for message in request.messages] == ["system", "user"]
    assert request.messages[1].content == "a.md:\n````\n```\ncode\n```\n````\n\nRead it"
    assert (request.temperature, request.stop) == (0.5, ("END",))


def test_blocks_of_code_are_found_also_one_that_is_not_closed() -> None:
    text = "```python\na\n```\ntext\n~~~\nb ``` c\n~~~\n````md\n```\nin\n```\n````\n```\nopen"
    assert list(code_blocks(text)) == [("python", "a"), ("", "b ``` c"), ("md", "```\nin\n```"), ("", "open")]


def test_an_option_is_read_as_it_is_written() -> None:
    options = Options(stop=("a\n", "b"), max_tokens=5, seed=3)
    again = {name: read_option(name, written(options, name)) for name in FIELDS}
    assert msgspec.structs.replace(Options(), **again) == options
    for name, text in [("temperature", "nan"), ("top_p", "0"), ("max_tokens", "0"), ("top_k", "x"), ("tmp", "1")]:
        with pytest.raises(CallboardError):
            read_option(name, text)


def test_what_is_no_text_is_not_attached_and_why_is_said(tmp_path: Path) -> None:
    for name, data in [("a.png", b"x"), ("a.bin", b"\xff\xfe"), ("zero", b"a\0b"), ("large", b"x" * 300_000)]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CallboardError) as refused:
            read_attachment(str(tmp_path / name))
        assert name in str(refused.value)
    with pytest.raises(CallboardError):
        read_attachment(str(tmp_path))


def test_slash_commands_are_completed_and_parsed() -> None:
    assert [line for line, _ in completions("/re", lambda kind, start: ())] == ["/rename ", "/retry"]
    assert completions("/model sm", lambda kind, start: ["smollm2", "other"]) == [("/model smollm2", "smollm2")]
    assert completions("//re", lambda kind, start: ()) == []
    assert parse("/set top_p 0.5") == ("set", "top_p 0.5")
    with pytest.raises(CallboardError) as wrong:
        parse("/retri")
    assert "/retry" in wrong.value.hint
