"""The tokenizer of a model's folder as a GGUF file describes one.

A file has the tokens and what joins them, but only the name of a rule for how text is split before, and one switch for
the space before a text. So a `tokenizer.json` is matched with what can be said, the result is read back, and it must
give the same ids for every token's own text and for texts that are split in all the ways that the rules differ in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter
from tokenizers import Tokenizer as Backend

from ...runtime.errors import ModelDamaged
from ..models.errors import UnsupportedModel
from ..models.folder import ModelFolder
from ..models.tokenizer import Tokenizer, TokenType
from ..models.tokenizer_folder import TOKENIZER, special_tokens, tokenizer_from_folder
from ..models.tokenizer_gguf import (
    SPACE,
    BytePairTokenizer,
    SentencePieceTokenizer,
    has_whole_words_first,
    split_rules,
)

# What the known rules split differently, and what tokenizers are known to trip over.
PROBES = (
    "Hello world, this is a test.",
    "x =  12 + 345 - 6789012  3.14",
    "don't I'LL they've WE'RE it's",
    "a\n\nb\tc\r\n\r\n   d  \n e",
    "(foo)[bar]{baz} #include <x.h> ...!?! a_b-c//d",
    "naïve café über straße ÀÉÎ e\u0301 Å\u212b",
    "你好，世界！ こんにちは 안녕하세요 Привет мир مرحبا",
    "emoji 🙂👍🏽 and ½ ² Ⅷ ٣٤٥",
    "  leading and trailing  ",
    "if x:\n        return 1\n\n\n",
    "$100,000.00 50% 1st 2nd3 x1y22z333w4444",
    "\u00a0\u2003 odd \u3000 spaces\u200b",
    "",
    " ",
)
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """What goes into the file. `pre`, `merges`: of byte-level BPE; `scores`, `add_space`: of SentencePiece's."""

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    special: Mapping[str, int]
    stop_ids: tuple[int, ...]
    add_bos: bool
    chat_template: str
    merges: tuple[str, ...] = ()
    pre: str = ""
    scores: tuple[float, ...] = ()
    add_space: bool = False

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2" if self.pre else "llama")
        if self.pre:
            writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.pre:
            writer.add_token_merges(self.merges)
        else:
            writer.add_token_scores(self.scores)
            writer.add_add_space_prefix(self.add_space)
        for name, token_id in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
        for name, token_id in zip(("eot", "eom"), self.stop_ids, strict=False):
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", token_id)
        writer.add_add_bos_token(self.add_bos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)

    def read_back(self) -> Tokenizer:
        """What a reader of the file makes of it, as far as ids go."""
        ends: dict[str, Any] = {
            "stop_ids": frozenset(self.stop_ids),
            "eos_id": self.special.get("eos"),
            "bos_id": self.special.get("bos"),
            "add_bos": self.add_bos,
        }
        if self.pre:
            return BytePairTokenizer(self.tokens, self.merges, self.types, pre=self.pre, **ends)
        return SentencePieceTokenizer(self.tokens, self.scores, self.types, add_space=self.add_space, **ends)


def vocabulary_of(folder: ModelFolder, vocab_size: int) -> Vocabulary:
    """`vocab_size`: rows of the embedding; ids without a token get one that no text has. Raises UnsupportedModel for
    what a file cannot say, ModelDamaged."""
    tokenizer = tokenizer_from_folder(folder)
    described = folder.json(TOKENIZER)
    kind = (described.get("model") or {}).get("type")
    if kind != "BPE":
        raise UnsupportedModel(f"{folder.path} has a tokenizer of the kind {kind!r}; BPE goes into a GGUF file")
    common = _common(folder, tokenizer, described, vocab_size)
    if described["model"].get("byte_fallback"):
        vocabulary = _sentence_piece(folder, described, common)
    else:
        vocabulary = _byte_level(folder, described, common)
    marks = [added["content"] for added in described.get("added_tokens", ())]
    check_same(folder, tokenizer, vocabulary.read_back(), marks)
    return vocabulary


def check_same(folder: ModelFolder, expected: Tokenizer, found: Tokenizer, marks: Sequence[str]) -> None:
    """UnsupportedModel where the two give a text different ids, or an id different bytes. `marks`: tokens that stand
    for themselves wherever a text has them."""
    for i, (theirs, ours) in enumerate(zip(expected.vocab_bytes(), found.vocab_bytes(), strict=False)):
        if theirs and theirs != ours:
            raise UnsupportedModel(
                f"{folder.path} has a tokenizer that GGUF cannot describe: token {i} would stand for {ours!r} "
                f"and not {theirs!r}"
            )
    texts = [text for i in range(expected.vocab_size) if (text := _text_of(expected, i))]
    texts += PROBES
    texts += [f"{mark}hello world{mark}\nuser 12 {mark} x" for mark in marks]
    for text in texts:
        theirs, ours = expected.encode(text), found.encode(text)
        if theirs != ours:
            raise UnsupportedModel(
                f"{folder.path} has a tokenizer that GGUF cannot describe: {text[:40]!r} would become "
                f"{ours[:12]} and not {theirs[:12]}"
            )


def _text_of(tokenizer: Tokenizer, token_id: int) -> str:
    """Empty for a token that is no text by itself (a part of a character)."""
    try:
        return tokenizer.token_bytes(token_id, skip_control=False).decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _common(folder: ModelFolder, tokenizer: Tokenizer, described: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """The fields that do not depend on the kind of tokenizer."""
    tokens, types = _tokens(folder, described, vocab_size)
    special = _special_ids(folder, described)
    bos = special.get("bos")
    if tokenizer.prefix not in ((), (bos,)) or tokenizer.suffix:
        raise UnsupportedModel(
            f"{folder.path} puts the tokens {[*tokenizer.prefix, *tokenizer.suffix]} around a text; GGUF can say no "
            "more than that a text begins with the start token"
        )
    others = tuple(sorted(tokenizer.stop_ids - {special.get("eos")}))
    if len(others) > 2:
        raise UnsupportedModel(f"{folder.path} ends a turn with any of {len(others) + 1} tokens; GGUF has room for 3")
    template = tokenizer.chat_template
    return {
        "tokens": tokens,
        "types": types,
        "special": special,
        "stop_ids": others,
        "add_bos": bool(tokenizer.prefix),
        "chat_template": template.text if template else "",
    }


def _tokens(
    folder: ModelFolder, described: Mapping[str, Any], vocab_size: int
) -> tuple[tuple[str, ...], tuple[TokenType, ...]]:
    model = described["model"]
    has_bytes = bool(model.get("byte_fallback"))
    found: dict[int, tuple[str, TokenType]] = {}
    for token, i in model["vocab"].items():
        kind = TokenType.BYTE if has_bytes and _BYTE_TOKEN.fullmatch(token) else TokenType.NORMAL
        found[i] = token, kind
    for added in described.get("added_tokens", ()):
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        found[added["id"]] = added["content"], kind
    if has_bytes and (unknown := model.get("unk_token")) is not None:
        found[model["vocab"][unknown]] = unknown, TokenType.UNKNOWN
    if found and max(found) >= vocab_size:
        raise ModelDamaged(f"{folder.path} has {max(found) + 1} tokens and {vocab_size} embeddings")
    for i in range(vocab_size):
        if found.get(i, (_pad(i),))[0] == _pad(i):  # also one that a file had, before it became this folder
            found[i] = _pad(i), TokenType.UNUSED
    whole = [found[i] for i in range(vocab_size)]
    return tuple(token for token, _ in whole), tuple(kind for _, kind in whole)


def _pad(token_id: int) -> str:
    """What llama.cpp's converter calls an id without a token."""
    return f"[PAD{token_id}]"


def _special_ids(folder: ModelFolder, described: Mapping[str, Any]) -> dict[str, int]:
    """`bos`, `eos`, ... as GGUF names them."""
    backend = Backend.from_str(json.dumps(described))
    texts = special_tokens(folder, folder.json("tokenizer_config.json", optional=True))
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    ids = {name: backend.token_to_id(texts[key]) for name, key in names.items() if key in texts}
    return {name: i for name, i in ids.items() if i is not None}


def _merges(described: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Old files write a pair as one text with a space in it, new ones as two."""
    return [
        (left, right)
        for left, right in (
            merge.split(" ", 1) if isinstance(merge, str) else merge for merge in described["model"].get("merges", ())
        )
    ]


# Byte-level


def _byte_level(folder: ModelFolder, described: Mapping[str, Any], common: dict[str, Any]) -> Vocabulary:
    merges = tuple(" ".join(pair) for pair in _merges(described))
    if any(merge.count(" ") != 1 for merge in merges):
        raise UnsupportedModel(f"{folder.path} joins tokens that have spaces in them, which GGUF cannot write down")
    # Where nothing is joined it does not matter how text is split.
    rules = _rules_like(described) if merges else ["gpt-2"]
    if not rules:
        raise UnsupportedModel(
            f"{folder.path} splits text by a rule that is not known here",
            hint=f"known rules: {', '.join(sorted(split_rules()))}",
        )
    return Vocabulary(**common, merges=merges, pre=rules[0])


def _rules_like(described: Mapping[str, Any]) -> list[str]:
    """The rules that split, normalize and look up text as the tokenizer does."""
    backend = Backend.from_str(json.dumps(described))
    theirs = _splitter(backend.normalizer, backend.pre_tokenizer)
    if theirs is None:
        return []
    found: list[str] = []
    whole_words = bool(described["model"].get("ignore_merges"))
    for name, (normalizer, splitter) in split_rules().items():
        ours = _splitter(normalizer, splitter)
        if ours is not None and has_whole_words_first(name) == whole_words:
            if all(theirs(text) == ours(text) for text in PROBES):
                found.append(name)
    return found


def _splitter(normalizer: Any, splitter: Any) -> Callable[[str], list[str]] | None:
    if splitter is None:
        return None

    def split(text: str) -> list[str]:
        normal = normalizer.normalize_str(text) if normalizer is not None else text
        return [piece for piece, _ in splitter.pre_tokenize_str(normal)]

    return split


# SentencePiece


def _sentence_piece(folder: ModelFolder, described: Mapping[str, Any], common: dict[str, Any]) -> Vocabulary:
    """A token's score is minus the rank of the first pair that is joined to it; what no pair makes is never made."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(described)):
        ranks.setdefault(left + right, rank)
    last = len(ranks)
    types = list(common["types"])
    for i, (token, kind) in enumerate(zip(common["tokens"], types, strict=True)):
        if kind is TokenType.NORMAL and len(token) > 1 and token not in ranks:
            types[i] = TokenType.UNUSED
    scores = tuple(
        -float(ranks.get(token, last)) if kind is TokenType.NORMAL else 0.0
        for token, kind in zip(common["tokens"], types, strict=True)
    )
    return Vocabulary(**{**common, "types": tuple(types)}, scores=scores, add_space=_adds_space(folder, described))


def _adds_space(folder: ModelFolder, described: Mapping[str, Any]) -> bool:
    """Whether a space comes before each stretch of text. Raises UnsupportedModel for other ways to treat spaces."""
    steps = [
        *_steps(described.get("normalizer"), "normalizers"),
        *_steps(described.get("pre_tokenizer"), "pretokenizers"),
    ]
    adds = False
    for step in steps:
        kind = step.get("type")
        if kind == "Prepend" and step.get("prepend") == SPACE:
            adds = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE and not step.get("split", False):
            adds |= step.get("prepend_scheme", "always") != "never"
        elif not (kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content") == SPACE):
            raise UnsupportedModel(
                f"{folder.path} changes text by the step {kind!r} before it is split, unknown to GGUF"
            )
    return adds


def _steps(part: Mapping[str, Any] | None, inner: str) -> Sequence[Mapping[str, Any]]:
    if part is None:
        return ()
    return part[inner] if part.get("type") == "Sequence" else (part,)
