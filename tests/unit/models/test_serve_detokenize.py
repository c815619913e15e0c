"""Text comes out in whole characters, and never a part of a stop string, wherever tokens are divided."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from callboard.actors.models.tokenizer import TokenType, byte_alphabet
from callboard.actors.models.tokenizer_gguf import BytePairTokenizer
from callboard.actors.serve.detokenize import Detokenizer, StopFinder
from callboard.actors.serve.text import Text

BYTES = byte_alphabet()
TOKENIZER = BytePairTokenizer(
    [BYTES[byte] for byte in range(256)] + ["<|end|>"],
    [],
    [TokenType.NORMAL] * 256 + [TokenType.CONTROL],
    pre="gpt-2",
    stop_ids=frozenset({256}),
)


@given(st.text())
def test_characters_come_out_whole_and_as_soon_as_they_are_complete(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    done = ""
    for character in text:
        pieces = [detokenizer.push(byte) for byte in character.encode()]
        assert pieces == [""] * (len(pieces) - 1) + [character]
        done += character
    assert detokenizer.flush() == ""


@given(st.binary())
def test_bytes_that_are_no_text_come_out_as_decoding_all_at_once_gives_them(data: bytes) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.push(byte) for byte in data]
    assert "".join(pieces) + detokenizer.flush() == TOKENIZER.decode(list(data)) == data.decode("utf-8", "replace")


def test_control_tokens_are_silent() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    assert [detokenizer.push(token) for token in (ord("a"), 256, ord("b"))] == ["a", "", "b"]


stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)


@given(st.lists(st.text("abc", max_size=3)), stops)
@example(["a", "a", "b"], ["ab"])
@example(["ab", "ca"], ["abcb", "c"])
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    finder = StopFinder(stops)
    out, seen, stopped = "", "", False
    for piece in pieces:
        seen += piece
        passed, stopped = finder.push(piece)
        out += passed
        first = min((at for stop in stops if (at := seen.find(stop)) >= 0), default=None)
        assert stopped == (first is not None)
        if first is not None:
            # What could be told apart from a stop string only by what came with it may have gone out, no more.
            assert out == seen[:first]
            break
        assert seen.startswith(out)
        held = seen[len(out) :]
        assert not held or any(stop.startswith(held) for stop in stops), "text is held back for no stop string"
    if not stopped:
        assert out + finder.flush() == seen


def test_an_answer_is_handed_out_once_and_kept_whole() -> None:
    text = Text(TOKENIZER, ["END"])
    taken = []
    for byte in "Hé ENx EN".encode():
        assert not text.push(byte)
        taken.append(text.take())
    text.flush()
    taken.append(text.take())
    assert "".join(taken) == text.whole() == "Hé ENx EN"
    assert taken[-1] == "EN"
    assert text.take() == ""


def test_half_a_character_at_the_end_may_complete_no_stop_string_but_is_not_lost() -> None:
    text = Text(TOKENIZER, ["\ufffd!"])
    for byte in b"a\xc3":
        text.push(byte)
    text.flush()
    assert text.whole() == "a\ufffd"


def test_nothing_follows_a_stop_string_not_even_half_a_character() -> None:
    finder = StopFinder(["stop"])
    assert finder.push("go, stop it") == ("go, ", True)
    assert finder.found == "stop"
    assert finder.push("\ufffd") == ("", True)
    assert finder.flush() == ""
