"""A model's tokenizer, built with `tokenizers` from what its GGUF file says.

Byte-level BPE only. How text is split before the merges is named by `tokenizer.ggml.pre`; the splits are not
interchangeable (SmolLM2 takes digits one by one, GPT-2 in runs), so an unknown name is an error and never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ...runtime.errors import ModelDamaged, RequestInvalid
from .chat_template import ChatTemplate
from .errors import UnsupportedModel
from .gguf import GGUFFile


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`, as llama.cpp numbers them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": lambda: _BYTE_LEVEL,
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTE_LEVEL]),
}


class Tokenizer:
    """Text to token ids and back.

    `stop_ids` are the tokens that end a turn. Control tokens (`<|im_start|>`, ...) written in a text become their ids,
    as in transformers. Safe to use from several threads.
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
        self.vocab_size = len(tokens)
        self.stop_ids = stop_ids
        self.chat_template = chat_template
        self._bos_id = bos_id if add_bos else None
        self._backend = _build(tokens, merges, token_types, _PRE_TOKENIZERS[pre]())
        self._control_ids = frozenset(i for i, kind in enumerate(token_types) if kind == TokenType.CONTROL)
        self._bytes = _byte_table(tokens, token_types)
        self.longest_token_bytes = max(map(len, self._bytes))

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Tokenizer:
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

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """The ids of `text`; begins with the model's start token where the model wants one and `add_bos` is set."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [self._bos_id, *ids] if add_bos and self._bos_id is not None else ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids of a conversation up to where the assistant is to speak (the template writes its start tokens)."""
        if self.chat_template is None:
            raise RequestInvalid("this model has no chat template", hint="send a plain `prompt` instead of messages")
        return self.encode(self.chat_template.render(messages), add_bos=False)

    def decode(self, ids: Sequence[int], *, skip_control: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.token_bytes(i, skip_control=skip_control) for i in ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int, *, skip_control: bool = True) -> bytes:
        """The bytes that one token stands for, often a part of a character; none for a control token."""
        if skip_control and token_id in self._control_ids:
            return b""
        return self._bytes[token_id]


def _build(
    tokens: Sequence[str], merges: Sequence[str], token_types: Sequence[int], pre: pre_tokenizers.PreTokenizer
) -> Backend:
    if len(token_types) != len(tokens):
        raise ModelDamaged(f"the tokenizer has {len(tokens)} tokens but {len(token_types)} token types")
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        left, _, right = merge.partition(" ")
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise ModelDamaged(f"the tokenizer's merge {merge!r} does not fit its vocabulary")
        pairs.append((left, right))
    backend = Backend(models.BPE(vocab, pairs))
    backend.pre_tokenizer = pre  # pyright: ignore[reportAttributeAccessIssue]
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
