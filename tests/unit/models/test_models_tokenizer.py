"""The tokenizer against golden ids, and against byte-pair encoding written out plainly.

The golden ids follow from SmolLM2's rules by hand: each digit is a token of its own, a run of spaces before a digit
stays whole, a space before a word belongs to the word.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import regex
from gguf import GGUFWriter
from hypothesis import example, given, settings
from hypothesis import strategies as st

from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.gguf import GGUFFile
from callboard.actors.models.tokenizer import Tokenizer, TokenType, byte_alphabet
from callboard.actors.models.tokenizer_gguf import BytePairTokenizer, SentencePieceTokenizer
from callboard.runtime.errors import ModelDamaged, RequestInvalid

GOLDEN = [
    ("x =  12", [b"x", b" =", b"  ", b"1", b"2"]),
    ("Hello world 2024!", [b"Hello", b" world", b" ", b"2", b"0", b"2", b"4", b"!"]),
    ("3.14", [b"3", b".", b"1", b"4"]),
    ("don't I'll", [b"don", b"'t", b" I", b"'ll"]),
    ("  double  spaces", [b" ", b" double", b" ", b" spaces"]),
    ("a\n\nb\tc\n\n", [b"a", b"\n", b"\n", b"b", b"\t", b"c", b"\n\n"]),
    ("cafe9", [b"c", b"afe", b"9"]),
    ("12 34", [b"1", b"2", b" ", b"3", b"4"]),
]


@pytest.fixture(scope="module")
def plain(smollm2_path: Path) -> PlainBytePairEncoding:
    with GGUFFile(smollm2_path) as file:
        return PlainBytePairEncoding(
            file.get("tokenizer.ggml.tokens", list),
            file.get("tokenizer.ggml.merges", list),
            file.get("tokenizer.ggml.token_type", list),
        )


class PlainBytePairEncoding:
    """SmolLM2's tokenizer as its rules say, without `tokenizers`: split, then merge the best-ranked pair until none
    is left."""

    # llama.cpp's two expressions for `smollm`, applied one after the other.
    DIGIT = regex.compile(r"\p{N}")
    WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

    def __init__(self, tokens: list[str], merges: list[str], types: list[int]) -> None:
        self.ids = {token: i for i, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        control = [regex.escape(token) for token, kind in zip(tokens, types, strict=True) if kind == TokenType.CONTROL]
        self.control = regex.compile("(" + "|".join(sorted(control, key=len, reverse=True)) + ")")
        self.alphabet = byte_alphabet()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(self.control.split(text)):
            ids += [self.ids[part]] if i % 2 else [token for word in self.words(part) for token in self.merge(word)]
        return ids

    def words(self, text: str) -> list[str]:
        parts = regex.split(f"({self.DIGIT.pattern})", text)
        return [word for part in parts if part for word in self.WORD.findall(part)]

    def merge(self, word: str) -> list[int]:
        # The vocabulary has no token for some control characters, and for bytes that only characters beyond U+3FFFF
        # have; these are dropped, as transformers and llama.cpp drop them.
        pieces = [self.alphabet[byte] for byte in word.encode() if self.alphabet[byte] in self.ids]
        while len(pieces) > 1:
            ranked = [(self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(pairwise(pieces))]
            rank, i = min(ranked)
            if rank == len(self.ranks):
                break
            pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
        return [self.ids[piece] for piece in pieces]


@pytest.mark.parametrize(("text", "pieces"), GOLDEN)
def test_golden_cases(smollm2_tokenizer: Tokenizer, text: str, pieces: list[bytes]) -> None:
    assert [smollm2_tokenizer.token_bytes(i) for i in smollm2_tokenizer.encode(text)] == pieces
    assert smollm2_tokenizer.decode(smollm2_tokenizer.encode(text)) == text


def test_golden_ids(smollm2_tokenizer: Tokenizer) -> None:
    # Digits are the tokens 32 to 41, after 17 control tokens and the characters from "!" to "/".
    assert smollm2_tokenizer.encode("0123456789") == list(range(32, 42))
    assert smollm2_tokenizer.encode("x =  12") == [104, 446, 256, 33, 34]
    assert smollm2_tokenizer.encode("<|im_start|>user\nhi<|im_end|>") == [1, 4093, 198, 6004, 2]


@settings(max_examples=150)
@example("naïve café 😀👨‍👩‍👧 ½ ٣ 中文 \u00a0\u2003x")
@example("<|im_start|><|im_end|> <|im_start ")
@given(st.text())
def test_any_text_is_encoded_as_the_rules_say_and_comes_back(
    smollm2_tokenizer: Tokenizer, plain: PlainBytePairEncoding, text: str
) -> None:
    ids = smollm2_tokenizer.encode(text)
    assert ids == plain.encode(text)
    if all(plain.alphabet[byte] in plain.ids for byte in text.encode()):
        assert smollm2_tokenizer.decode(ids, skip_control=False) == text


def test_control_tokens_have_no_text(smollm2_tokenizer: Tokenizer) -> None:
    assert smollm2_tokenizer.decode([1, 6004, 2]) == "hi"
    assert smollm2_tokenizer.stop_ids == {2}


def test_bytes_that_are_no_character_become_the_replacement_character(smollm2_tokenizer: Tokenizer) -> None:
    half = smollm2_tokenizer.encode("😀")[:1]
    assert smollm2_tokenizer.decode(half) == "\ufffd"


def test_an_unknown_way_to_split_text_is_an_error() -> None:
    with pytest.raises(UnsupportedModel, match="deepseek-coder") as caught:
        BytePairTokenizer(["a"], [], [1], pre="deepseek-coder", stop_ids=frozenset())
    assert "smollm" in caught.value.hint


def test_merges_that_do_not_fit_the_vocabulary_are_damage() -> None:
    for merges in (["a b"], ["ab"], ["a b c"]):
        with pytest.raises(ModelDamaged):
            BytePairTokenizer(["a", "b"], merges, [1, 1], pre="gpt-2", stop_ids=frozenset())


def test_a_model_without_a_chat_template_says_so() -> None:
    tokenizer = BytePairTokenizer(["a"], [], [1], pre="gpt-2", stop_ids=frozenset())
    with pytest.raises(RequestInvalid, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "a"}])


def test_the_start_token_is_added_where_the_model_wants_one() -> None:
    tokens, types = ["<s>", "a"], [TokenType.CONTROL, TokenType.NORMAL]
    wants = BytePairTokenizer(tokens, [], types, pre="gpt-2", stop_ids=frozenset(), bos_id=0, add_bos=True)
    assert wants.encode("a") == [0, 1]
    assert wants.encode("a", add_bos=False) == [1]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "x12345 's", ["x", "12345", " '", "s"]),
        ("llama-bpe", "x12345", ["x", "123", "45"]),
        ("qwen2", "x123", ["x", "1", "2", "3"]),
        ("qwen2", "I'LL (say) so!\n\n  go", ["I", "'LL", " (", "say", ")", " so", "!\n\n", " ", " go"]),
        ("llama-bpe", "a\r\n\n b\t c", ["a", "\r\n\n", " b", "\t", " c"]),
    ],
)
def test_text_is_split_by_the_rule_that_the_file_names(pre: str, text: str, pieces: list[str]) -> None:
    """With a vocabulary of all the pieces, and merges that would also join what the rule keeps apart."""
    alphabet = byte_alphabet()
    tokens = list(alphabet.values())
    merges: list[str] = []
    for piece in [*pieces, text]:
        spelled = "".join(alphabet[byte] for byte in piece.encode())
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in tokens:
                tokens.append(spelled[:end])
                merges.append(f"{spelled[: end - 1]} {spelled[end - 1]}")
    tokenizer = BytePairTokenizer(tokens, merges, [TokenType.NORMAL] * len(tokens), pre=pre, stop_ids=frozenset())
    assert [tokenizer.token_bytes(i).decode() for i in tokenizer.encode(text)] == pieces


def test_a_word_of_the_vocabulary_is_one_token_where_the_rule_says_so() -> None:
    tokens = [*byte_alphabet().values(), "ab", "bc", "abc"]
    for pre, expected in (("qwen2", [b"a", b"bc"]), ("llama-bpe", [b"abc"])):
        # No merge leads to "abc": "b c" comes first.
        tokenizer = BytePairTokenizer(tokens, ["b c"], [1] * len(tokens), pre=pre, stop_ids=frozenset())
        assert [tokenizer.token_bytes(i) for i in tokenizer.encode("abc")] == expected


def test_qwen2_composes_characters_first() -> None:
    tokens = list(byte_alphabet().values())
    tokenizer = BytePairTokenizer(tokens, [], [1] * len(tokens), pre="qwen2", stop_ids=frozenset())
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == "\u00e9"


CHARACTERS = "▁abé"
PIECES = {
    "▁a": -1.0,
    "ab": -2.0,
    "▁ab": -3.0,
    "▁▁": -0.5,
    "ba": -1.5,
    "aba": -0.7,
    "bb": -4.0,
    "abab": -6.0,
    "éa": -2.5,
}


def sentencepiece(*, add_space: bool = True) -> SentencePieceTokenizer:
    tokens = ["<unk>", "<s>", "</s>", "<tool>", *(f"<0x{byte:02X}>" for byte in range(256)), *CHARACTERS, *PIECES]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.USER_DEFINED]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * (len(CHARACTERS) + len(PIECES))
    scores = [0.0] * 260 + [-100.0] * len(CHARACTERS) + list(PIECES.values())
    return SentencePieceTokenizer(
        tokens, scores, types, stop_ids=frozenset({2}), add_space=add_space, bos_id=1, add_bos=True
    )


@settings(max_examples=200)
@example("ab ab")
@example(" a  b é😀")
@given(st.text(alphabet="ab é😀", max_size=12))
def test_sentencepiece_joins_the_best_scored_neighbours_first(text: str) -> None:
    """Written out plainly: of all neighbours that together are a piece, join those of the best score."""
    tokenizer = sentencepiece()
    pieces = list("▁" + text.replace(" ", "▁")) if text else []
    while joins := [(PIECES[a + b], -at) for at, (a, b) in enumerate(pairwise(pieces)) if a + b in PIECES]:
        at = -max(joins)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    expected = [piece.replace("▁", " ").encode() for piece in pieces]
    ids = tokenizer.encode(text)
    assert ids[0] == 1
    # A character without a piece is spelled in bytes.
    spelled = [bytes([byte]) for piece in expected for byte in piece] if "😀" in text else None
    actual = [tokenizer.token_bytes(i) for i in ids[1:]]
    assert b"".join(actual) == b"".join(expected)
    if spelled is None:
        assert actual == expected
    assert tokenizer.decode(ids) == text


def test_sentencepiece_drops_the_space_that_it_put_before_a_text() -> None:
    tokenizer, plain = sentencepiece(), sentencepiece(add_space=False)
    ids = tokenizer.encode("ab")
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, continues=True) == " ab"
    assert plain.decode(plain.encode(" ab")) == " ab"
    assert tokenizer.encode("<tool></s>", add_bos=False) == [3, 2]
    assert tokenizer.decode([3, 2]) == "<tool>"
    assert tokenizer.decode([4 + byte for byte in "😀".encode()]) == "😀"


def test_sentencepiece_lists_that_do_not_go_together_are_damage() -> None:
    with pytest.raises(ModelDamaged, match="2 tokens, 1 scores"):
        SentencePieceTokenizer(["a", "b"], [0.0], [1, 1], stop_ids=frozenset())
    with pytest.raises(ModelDamaged, match="name a byte"):
        SentencePieceTokenizer(["<0xzz>"], [0.0], [TokenType.BYTE], stop_ids=frozenset())


@pytest.mark.parametrize("key", ["tokens", "merges", "token_type", "scores"])
def test_a_gguf_file_whose_lists_hold_something_else_is_damaged(tmp_path: Path, key: str) -> None:
    lists: dict[str, list[object]] = {
        "tokens": ["a", "b"],
        "merges": ["a b"],
        "token_type": [1, 1],
        "scores": [0.5, 1.5],
    }
    lists[key] = ["x", "y"] if key == "token_type" else [1, 2]
    writer = GGUFWriter(tmp_path / "odd.gguf", "llama")
    writer.add_tokenizer_model("llama" if key == "scores" else "gpt2")
    for name, values in lists.items():
        writer.add_array(f"tokenizer.ggml.{name}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with GGUFFile(tmp_path / "odd.gguf") as file, pytest.raises(ModelDamaged, match=key):
        Tokenizer.from_gguf(file)
