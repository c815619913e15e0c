"""Tokenizers from folders: any kind becomes text token by token, and whole texts as `tokenizers` itself makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from callboard.actors.models.errors import UnsupportedModel
from callboard.actors.models.loading import load_tokenizer
from callboard.actors.models.tokenizer import Tokenizer
from callboard.actors.serve.detokenize import Detokenizer
from callboard.runtime.errors import ModelDamaged, RequestInvalid

CORPUS = [
    "the quick brown fox jumps over the lazy dog. it isn't lazy, is it?",
    "an actor in a play speaks to another actor; the naïve café owner listens",
    "lists of numbers: 1 22 333, and  double  spaces, and a\ttab\n",
]
SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>"]


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _train(backend, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL))


def _byte_fallback(normalizer: Any, decoder: Any) -> Backend:
    backend = Backend(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizer
    backend.decoder = decoder
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(backend, trainers.BpeTrainer(vocab_size=420, special_tokens=[*SPECIAL, *byte_tokens]))
    # Trained as special tokens, so that they have ids; in a model of this kind they are plain entries.
    described = json.loads(backend.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIAL]
    return Backend.from_str(json.dumps(described))


def llama_like() -> Backend:
    return _byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ),
    )


def gemma_like() -> Backend:
    return _byte_fallback(
        normalizers.Replace(" ", "▁"),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    )


def unigram() -> Backend:
    backend = Backend(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _train(backend, trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>"))


def wordpiece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return _train(backend, trainers.WordPieceTrainer(vocab_size=120, special_tokens=SPECIAL))


def words() -> Backend:
    backend = Backend(models.WordLevel(unk_token="<unk>"))  # pyright: ignore[reportCallIssue]
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _train(backend, trainers.WordLevelTrainer(special_tokens=SPECIAL))


def _train(backend: Backend, trainer: Any) -> Backend:
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    return backend


KINDS: dict[str, Callable[[], Backend]] = {
    "byte-level": byte_level,
    "llama-like": llama_like,
    "gemma-like": gemma_like,
    "unigram": unigram,
    "wordpiece": wordpiece,
    "words": words,
}


def write_folder(folder: Path, backend: Backend, settings: dict[str, Any] | None = None, **files: Any) -> Path:
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    defaults: dict[str, Any] = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    contents = {"config": {"model_type": "llama"}, "tokenizer_config": {**defaults, **(settings or {})}, **files}
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Backend, Tokenizer]:
    backend = KINDS[request.param]()
    return request.param, backend, load_tokenizer(write_folder(tmp_path_factory.mktemp("tokenizer"), backend))


def incremental(tokenizer: Tokenizer, ids: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer)
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


@settings(max_examples=150)
@given(st.data())
def test_any_stream_of_tokens_becomes_the_text_that_it_decodes_to(
    kind: tuple[str, Backend, Tokenizer], data: st.DataObject
) -> None:
    name, backend, tokenizer = kind
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=12))
    text = tokenizer.decode(ids, continues=True)
    assert incremental(tokenizer, ids) == text
    assert tokenizer.decode(ids) in (text, text.removeprefix(" "))
    # As `tokenizers` decodes it, but for bytes that make no character, of which it drops the good neighbours too; and
    # a text cannot begin inside a word.
    known = [i for i in ids if i < tokenizer.vocab_size]
    pieces = [backend.id_to_token(i) or "" for i in known if i not in tokenizer.control_ids]
    if any(piece.startswith("<0x") for piece in pieces) or (pieces and pieces[0].startswith("##")):
        return
    assert tokenizer.decode(ids) == backend.decode(known), name


@settings(max_examples=100)
@example("Naïve café 😀, isn't it?  two spaces")
@example(" leading")
@example("<|user|>hi</s> <tool>")
@given(st.text(alphabet="abc ï é😀.,'\n12", max_size=30))
def test_any_text_is_encoded_and_decoded_as_by_tokenizers(kind: tuple[str, Backend, Tokenizer], text: str) -> None:
    name, backend, tokenizer = kind
    ids = tokenizer.encode(text)
    assert ids == backend.encode(text).ids
    assert tokenizer.decode(ids) == backend.decode(ids)
    assert incremental(tokenizer, ids) == tokenizer.decode(ids, continues=True)
    if name in ("byte-level", "llama-like", "gemma-like") and "<" not in text:
        assert tokenizer.decode(ids) == text
        assert len(text.encode()) <= len(ids) * tokenizer.longest_token_bytes


def test_the_table_of_bytes_is_what_tokens_stand_for(kind: tuple[str, Backend, Tokenizer]) -> None:
    _, backend, tokenizer = kind
    table = tokenizer.vocab_bytes()
    assert len(table) == tokenizer.vocab_size == backend.get_vocab_size()
    assert [tokenizer.token_bytes(i, skip_control=False) for i in range(len(table))] == table
    assert tokenizer.control_ids == {backend.token_to_id(token) for token in SPECIAL}
    assert all(tokenizer.token_bytes(i) == b"" for i in tokenizer.control_ids)


def test_a_continuation_keeps_the_space_that_it_begins_with(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, llama_like()))
    ids = tokenizer.encode("the dog")
    assert tokenizer.decode(ids) == "the dog"
    assert tokenizer.decode(ids[:1]) + tokenizer.decode(ids[1:], continues=True) == "the dog"


def test_bytes_of_a_character_come_together(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_folder(tmp_path, llama_like()))
    smile = [tokenizer.vocab_bytes().index(bytes([byte])) for byte in "😀".encode()]
    assert tokenizer.decode(smile) == "😀"
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(i) for i in smile] == ["", "", "", "😀"]


@pytest.mark.parametrize(
    ("settings", "template", "around"),
    [
        ({}, None, ([], [])),
        ({}, "<s> $A", (["<s>"], [])),
        ({"add_bos_token": True}, None, (["<s>"], [])),
        ({"add_bos_token": False}, "<s> $A </s>", ([], ["</s>"])),
        ({"add_bos_token": True, "add_eos_token": False}, "<s> $A </s>", (["<s>"], [])),
    ],
)
def test_start_and_end_tokens_are_those_that_the_files_ask_for(
    tmp_path: Path, settings: dict[str, Any], template: str | None, around: tuple[list[str], list[str]]
) -> None:
    backend = byte_level()
    if template:
        ends = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, settings))
    before, after = ([backend.token_to_id(token) for token in tokens] for tokens in around)
    bare = tokenizer.encode("the dog", add_bos=False)
    assert bare == backend.encode("the dog", add_special_tokens=False).ids
    assert tokenizer.encode("the dog") == [*before, *bare, *after]


def test_the_tokens_that_end_a_turn(tmp_path: Path) -> None:
    backend = byte_level()
    ids = {token: backend.token_to_id(token) for token in SPECIAL}
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, config={"eos_token_id": 7}))
    assert tokenizer.stop_ids == {7, ids["</s>"]}
    generation = {"eos_token_id": [ids["</s>"], ids["<|user|>"]]}
    tokenizer = load_tokenizer(write_folder(tmp_path, backend, generation_config=generation))
    assert tokenizer.stop_ids == {ids["</s>"], ids["<|user|>"]}
    with pytest.raises(ModelDamaged, match="eos_token_id"):
        load_tokenizer(write_folder(tmp_path, backend, generation_config={"eos_token_id": "x"}))


CHAT = "{{ bos_token }}{% for m in messages %}<|user|>{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize("place", ["file", "setting", "named", "json"])
def test_the_chat_template_is_found_wherever_it_lies(tmp_path: Path, place: str) -> None:
    backend = byte_level()
    settings: dict[str, Any] = {}
    files: dict[str, Any] = {}
    if place == "setting":
        settings = {"chat_template": CHAT}
    elif place == "named":
        settings = {"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": CHAT}]}
    elif place == "json":
        files = {"chat_template": {"chat_template": CHAT}}
    folder = write_folder(tmp_path, backend, settings, **files)
    if place == "file":
        (folder / "chat_template.jinja").write_text(CHAT)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode_chat([{"role": "user", "content": "the dog"}])
    assert tokenizer.decode(ids, skip_control=False) == "<s><|user|>the dog</s>"
    assert tokenizer.decode(ids) == "the dog"


def test_a_folder_without_a_chat_template_says_so(tmp_path: Path) -> None:
    with pytest.raises(RequestInvalid, match="no chat template"):
        load_tokenizer(write_folder(tmp_path, byte_level())).encode_chat([{"role": "user", "content": "x"}])


def test_what_cannot_be_read_is_a_typed_error(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level())
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**described, "decoder": {"type": "CTC"}}))
    with pytest.raises(ModelDamaged):  # no valid CTC decoder
        load_tokenizer(folder)
    ctc = {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}
    (folder / "tokenizer.json").write_text(json.dumps({**described, "decoder": ctc}))
    with pytest.raises(UnsupportedModel, match="CTC"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelDamaged, match=r"tokenizer\.json"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        load_tokenizer(folder)
