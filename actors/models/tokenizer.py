"""A model's tokenizer: text to token ids, and back piece by piece.

`Tokenizer` is what the rest of the program uses, wherever a model comes from. `BytePairTokenizer` builds one from what
a GGUF file says, `tokenizer_folder` from a `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum, IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ...runtime.errors import ModelDamaged, RequestInvalid
from .chat_template import ChatTemplate
from .errors import UnsupportedModel
from .gguf import GGUFFile

# Bytes that one token may stand for where text is changed before it is split, or where whatever is unknown becomes one
# token: a bound for prompts that cannot fit, not a measure.
LOOSE_TOKEN_BYTES = 1024


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, as llama.cpp numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


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
# Rules under which a word that is in the vocabulary is that token, whatever the merges would make of it.
_WHOLE_WORDS_FIRST = {"llama-bpe"}


class FirstSpace(Enum):
    """What becomes of the space that the first token of a text begins with."""

    KEPT = "kept"
    DROPPED = "dropped"  # it was put there when the text was encoded


class Tokenizer:
    """Text to token ids and back.

    `stop_ids` are the tokens that end a turn. Control tokens (`<|im_start|>`, ...) written in a text become their ids,
    as in transformers. `longest_token_bytes`: no token stands for more bytes of a text. Safe to use from several
    threads.

    `table`: the bytes of each id inside a text. `prefix`, `suffix`: ids that the model wants around a text.
    `first_space`: a text that begins here has its first space dropped; one that goes on from a prompt keeps it.
    """

    def __init__(
        self,
        backend: Backend,
        table: Sequence[bytes],
        *,
        control_ids: frozenset[int],
        stop_ids: frozenset[int],
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        first_space: FirstSpace = FirstSpace.KEPT,
        longest_token_bytes: int | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.vocab_size = len(table)
        self.stop_ids = stop_ids
        self.chat_template = chat_template
        self.longest_token_bytes = longest_token_bytes or max(map(len, table), default=1)
        self._backend = backend
        self._table = list(table)
        self._control_ids = control_ids
        self._prefix = list(prefix)
        self._suffix = list(suffix)
        self._first_space = first_space

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
        return BytePairTokenizer.from_gguf(file)

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """The ids of `text`; with the tokens that the model wants around a text (its start token) if `add_bos`."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *ids, *self._suffix] if add_bos else ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation up to where the assistant is to speak (the template writes its start tokens)."""
        if self.chat_template is None:
            raise RequestInvalid("this model has no chat template", hint="send a plain `prompt` instead of messages")
        return self.encode(self.chat_template.render(messages), add_bos=False)

    def decode(self, ids: Sequence[int], *, skip_control: bool = True, continues: bool = False) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        `continues`: they go on from other tokens (a prompt, say), so that a space before them belongs to the text.
        """
        pieces = [self.token_bytes(i, skip_control=skip_control) for i in ids]
        if self._first_space is FirstSpace.DROPPED and not continues:
            first = next((i for i, piece in enumerate(pieces) if piece), None)
            if first is not None:
                pieces[first] = pieces[first].removeprefix(b" ")
        return b"".join(pieces).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, *, skip_control: bool = True) -> bytes:
        """The bytes that one token stands for inside a text, often a part of a character.

        None for a control token, nor for an id without a token: a model may have more of them than its tokenizer.
        """
        if token_id >= self.vocab_size or (skip_control and token_id in self._control_ids):
            return b""
        return self._table[token_id]

    def vocab_bytes(self) -> list[bytes]:
        """`token_bytes` of every id, control tokens as they are written."""
        return list(self._table)

    @property
    def control_ids(self) -> frozenset[int]:
        """Tokens that mark something and are not part of a text."""
        return self._control_ids


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
            prefix=(bos_id,) if add_bos and bos_id is not None else (),
            longest_token_bytes=LOOSE_TOKEN_BYTES if pre == "qwen2" else None,
            chat_template=chat_template,
        )

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> BytePairTokenizer:
        kind = file.get("tokenizer.ggml.model", str)
        if kind != "gpt2":
            raise UnsupportedModel(f"{file.path} has a '{kind}' tokenizer; byte-level BPE ('gpt2') is read here")
        tokens = file.get("tokenizer.ggml.tokens", list)

        def token_id(name: str) -> int | None:
            key = f"tokenizer.ggml.{name}_token_id"
            value = file.get(key, int, -1)
            if value >= len(tokens):
                raise ModelDamaged(f"{file.path} is damaged: {key} is {value}, beyond {len(tokens)} tokens")
            return value if value >= 0 else None

        special = {name: token_id(name) for name in ("bos", "eos", "unknown", "padding")}
        variables = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
        named = {variables[name]: tokens[i] for name, i in special.items() if i is not None}
        template = file.metadata.get("tokenizer.chat_template")
        return cls(
            tokens,
            file.get("tokenizer.ggml.merges", list),
            file.get("tokenizer.ggml.token_type", list, [TokenType.NORMAL] * len(tokens)),
            pre=file.get("tokenizer.ggml.pre", str, "gpt-2"),
            stop_ids=frozenset(i for i in map(token_id, ("eos", "eot", "eom")) if i is not None),
            bos_id=special["bos"],
            add_bos=file.get("tokenizer.ggml.add_bos_token", bool, False),
            chat_template=ChatTemplate(template, named) if isinstance(template, str) else None,
        )


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
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()  # pyright: ignore[reportAttributeAccessIssue]
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    for kind, special in ((TokenType.CONTROL, True), (TokenType.USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, its_kind in zip(tokens, token_types, strict=True)
            if its_kind == kind
        ]
        backend.add_special_tokens(added) if special else backend.add_tokens(added)
    return backend


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


def byte_alphabet() -> dict[int, str]:
    """GPT-2's map from a byte to the visible character that stands for it in a vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
