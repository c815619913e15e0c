"""Tokenizers built with `tokenizers` from what a GGUF file says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ...runtime.errors import ModelDamaged
from .chat_template import ChatTemplate
from .errors import UnsupportedModel
from .gguf import GGUFFile
from .tokenizer import LOOSE_TOKEN_BYTES, FirstSpace, Tokenizer, TokenType, byte_alphabet

SPACE = "▁"  # what stands for a space in SentencePiece's tokens


_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
# Contractions; a word with the one sign before it; a run of `digits`; signs, with the line ends after them; line ends;
# other space, of which the last one is left to the word that follows.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
    r" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _words(digits: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(_WORDS.format(digits=digits)), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: _BYTE_LEVEL,
    "llama-bpe": lambda: _words("{1,3}"),
    "qwen2": lambda: _words(""),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTE_LEVEL]),
}
_WHOLE_WORDS_FIRST = {"llama-bpe"}


def split_rules() -> dict[str, tuple[normalizers.Normalizer | None, pre_tokenizers.PreTokenizer]]:
    """What each name of a rule stands for: what is done to the text, and how it is split."""
    return {name: (_normalizer(name), make()) for name, make in _PRE_TOKENIZERS.items()}


def has_whole_words_first(rule: str) -> bool:
    """Whether a word that is in the vocabulary is that token, whatever the merges would make of it."""
    return rule in _WHOLE_WORDS_FIRST


def _normalizer(rule: str) -> normalizers.Normalizer | None:
    return normalizers.NFC() if rule == "qwen2" else None


# Of the keys of a file, the names that transformers and chat templates have for them.
_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


class Ends(TypedDict):
    """What a file says beside its tokens."""

    stop_ids: frozenset[int]
    eos_id: int | None
    bos_id: int | None
    add_bos: bool
    chat_template: ChatTemplate | None


def tokenizer_from_gguf(file: GGUFFile) -> Tokenizer:
    """Raises ModelDamaged, UnsupportedModel."""
    kind = file.get("tokenizer.ggml.model", str)
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int, [TokenType.NORMAL] * len(tokens))
    if kind == "gpt2":
        # A file cannot hold an empty list, and where every token is one byte there is nothing to join.
        are_bytes = all(len(token) == 1 for token, type in zip(tokens, types, strict=False) if type == TokenType.NORMAL)
        merges = _list(file, "merges", str, [] if are_bytes else None)
        pre = file.get("tokenizer.ggml.pre", str, "gpt-2")
        return BytePairTokenizer(tokens, merges, types, pre=pre, **_ends(file, tokens, add_bos=False))
    if kind == "llama":
        scores = _list(file, "scores", float)
        prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
        return SentencePieceTokenizer(tokens, scores, types, add_space=prefix, **_ends(file, tokens, add_bos=True))
    raise UnsupportedModel(
        f"{file.path} has a '{kind}' tokenizer; byte-level ('gpt2') and SentencePiece ('llama') ones are read here"
    )


def _list(file: GGUFFile, name: str, kind: type, default: list[Any] | None = None) -> list[Any]:
    values = file.get(f"tokenizer.ggml.{name}", list, default)
    if not all(isinstance(value, kind) for value in values):
        raise ModelDamaged(f"{file.path} is damaged: its 'tokenizer.ggml.{name}' are not all of type {kind.__name__}")
    return values


def special_tokens(file: GGUFFile) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... and their texts, those that the file has."""
    tokens = _list(file, "tokens", str)
    ids = {name: _token_id(file, key, len(tokens)) for key, name in _SPECIAL.items()}
    return {name: tokens[i] for name, i in ids.items() if i is not None}


def _token_id(file: GGUFFile, name: str, num_tokens: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.get(key, int, -1)
    if value >= num_tokens:
        raise ModelDamaged(f"{file.path} is damaged: {key} is {value}, beyond {num_tokens} tokens")
    return value if value >= 0 else None


def _ends(file: GGUFFile, tokens: Sequence[str], *, add_bos: bool) -> Ends:
    def token_id(name: str) -> int | None:
        return _token_id(file, name, len(tokens))

    template = file.metadata.get("tokenizer.chat_template")
    return Ends(
        stop_ids=frozenset(i for i in map(token_id, ("eos", "eot", "eom")) if i is not None),
        eos_id=token_id("eos"),
        bos_id=token_id("bos"),
        add_bos=file.get("tokenizer.ggml.add_bos_token", bool, add_bos),
        chat_template=ChatTemplate(template, special_tokens(file)) if isinstance(template, str) else None,
    )


class BytePairTokenizer(Tokenizer):
    """Byte-level byte-pair encoding from what a GGUF file says.

    How text is split before the merges is named by `pre`; the splits are not interchangeable (SmolLM2 takes digits
    one by one, GPT-2 in runs), so an unknown name is an error and never a guess.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        merges: Sequence[str],
        token_types: Sequence[int],
        *,
        pre: str,
        stop_ids: frozenset[int],
        eos_id: int | None = None,
        bos_id: int | None = None,
        add_bos: bool = False,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        if pre not in _PRE_TOKENIZERS:
            raise UnsupportedModel(
                f"the tokenizer splits text by the rule '{pre}', which is not known here",
                hint=f"known rules: {', '.join(sorted(_PRE_TOKENIZERS))}",
            )
        super().__init__(
            _build(tokens, merges, token_types, pre),
            _byte_table(tokens, token_types),
            control_ids=frozenset(i for i, kind in enumerate(token_types) if kind == TokenType.CONTROL),
            stop_ids=stop_ids,
            eos_id=eos_id,
            prefix=(bos_id,) if add_bos and bos_id is not None else (),
            longest_token_bytes=LOOSE_TOKEN_BYTES if pre == "qwen2" else None,
            chat_template=chat_template,
        )


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece's byte-pair encoding: of all neighbours that together are a token, the best-scored are joined
    first. What no token spells is spelled in bytes. Paper: https://arxiv.org/abs/1808.06226
    """

    def __init__(
        self,
        tokens: Sequence[str],
        scores: Sequence[float],
        token_types: Sequence[int],
        *,
        stop_ids: frozenset[int],
        eos_id: int | None = None,
        add_space: bool = True,
        bos_id: int | None = None,
        add_bos: bool = False,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        if not len(tokens) == len(scores) == len(token_types):
            raise ModelDamaged(
                f"the tokenizer has {len(tokens)} tokens, {len(scores)} scores and {len(token_types)} token types"
            )
        vocab = {token: i for i, token in enumerate(tokens)}
        unknown = [token for token, kind in zip(tokens, token_types, strict=True) if kind == TokenType.UNKNOWN]
        backend = Backend(
            models.BPE(
                vocab,
                _merges(tokens, scores, token_types),
                unk_token=unknown[0] if unknown else None,
                fuse_unk=True,
                byte_fallback=True,
            )
        )
        marks = normalizers.Replace(" ", SPACE)
        backend.normalizer = (  # pyright: ignore[reportAttributeAccessIssue]
            normalizers.Sequence([normalizers.Prepend(SPACE), marks]) if add_space else marks
        )
        steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        steps += [decoders.Strip(" ", 1, 0)] if add_space else []
        backend.decoder = decoders.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
        _add_literal(backend, tokens, token_types)
        control = (TokenType.CONTROL, TokenType.UNKNOWN)
        super().__init__(
            backend,
            [_piece_bytes(token, kind) for token, kind in zip(tokens, token_types, strict=True)],
            control_ids=frozenset(i for i, kind in enumerate(token_types) if kind in control),
            stop_ids=stop_ids,
            eos_id=eos_id,
            prefix=(bos_id,) if add_bos and bos_id is not None else (),
            first_space=FirstSpace.DROPPED if add_space else FirstSpace.KEPT,
            longest_token_bytes=LOOSE_TOKEN_BYTES,
            chat_template=chat_template,
        )


def _merges(tokens: Sequence[str], scores: Sequence[float], token_types: Sequence[int]) -> list[tuple[str, str]]:
    """Each way to join two tokens to a third, the best-scored results first."""
    spelled = {token for token, kind in zip(tokens, token_types, strict=True) if kind == TokenType.NORMAL}
    ranked = sorted((token for token in set(tokens) & spelled), key=dict(zip(tokens, scores, strict=True)).__getitem__)
    return [
        (token[:at], token[at:])
        for token in reversed(ranked)
        for at in range(1, len(token))
        if token[:at] in spelled and token[at:] in spelled
    ]


def _piece_bytes(token: str, kind: int) -> bytes:
    if kind == TokenType.BYTE:
        try:
            return bytes([int(token.removeprefix("<0x").removesuffix(">"), 16)])
        except ValueError:
            raise ModelDamaged(f"the tokenizer's token {token!r} should name a byte") from None
    return token.encode() if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) else token.replace(SPACE, " ").encode()


def _build(tokens: Sequence[str], merges: Sequence[str], token_types: Sequence[int], pre: str) -> Backend:
    if len(token_types) != len(tokens):
        raise ModelDamaged(f"the tokenizer has {len(tokens)} tokens but {len(token_types)} token types")
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelDamaged(f"the tokenizer's merge {merge!r} does not fit its vocabulary")
        pairs.append((left, right))
    backend = Backend(models.BPE(vocab, pairs, ignore_merges=pre in _WHOLE_WORDS_FIRST))
    if (normalizer := _normalizer(pre)) is not None:
        backend.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    _add_literal(backend, tokens, token_types)
    return backend


def _add_literal(backend: Backend, tokens: Sequence[str], token_types: Sequence[int]) -> None:
    """Tokens that stand for themselves wherever a text has them."""
    for kind, special in ((TokenType.CONTROL, True), (TokenType.UNKNOWN, True), (TokenType.USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, its_kind in zip(tokens, token_types, strict=True)
            if its_kind == kind
        ]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)


def _byte_table(tokens: Sequence[str], token_types: Sequence[int]) -> list[bytes]:
    """What each token stands for. A normal token spells its bytes in GPT-2's alphabet of visible characters; control
    and user-defined tokens are literal text."""
    byte_of = {character: byte for byte, character in byte_alphabet().items()}
    table: list[bytes] = []
    for token, kind in zip(tokens, token_types, strict=True):
        literal = kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
        if literal or any(character not in byte_of for character in token):
            table.append(token.encode())
        else:
            table.append(bytes(byte_of[character] for character in token))
    return table
