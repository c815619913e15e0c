"""A model's tokenizer: text to token ids, and back piece by piece.

`Tokenizer` is what the rest of the program uses, wherever a model comes from. `tokenizer_gguf` builds one from what a
GGUF file says, `tokenizer_folder` from a `tokenizer.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum, IntEnum
from typing import Any

from tokenizers import Tokenizer as Backend

from ...runtime.errors import RequestInvalid
from .chat_template import ChatTemplate
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


class FirstSpace(Enum):
    """What becomes of the space that the first token of a text begins with."""

    KEPT = "kept"
    DROPPED = "dropped"  # it was put there when the text was encoded


class Tokenizer:
    """Text to token ids and back.

    `stop_ids` are the tokens that end a turn; `eos_id` is the one that ends a text. Control tokens (`<|im_start|>`,
    ...) written in a text become their ids, as in transformers. `longest_token_bytes`: no token stands for more bytes
    of a text. Safe to use from several threads.

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
        eos_id: int | None = None,
        prefix: tuple[int, ...] = (),
        suffix: tuple[int, ...] = (),
        first_space: FirstSpace = FirstSpace.KEPT,
        longest_token_bytes: int | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        self.vocab_size = len(table)
        self.stop_ids = stop_ids
        self.eos_id = eos_id
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
        from .tokenizer_gguf import tokenizer_from_gguf

        return tokenizer_from_gguf(file)

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """The ids of `text`; with the tokens that the model wants around a text (its start token) if `add_bos`."""
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return [*self._prefix, *ids, *self._suffix] if add_bos else ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of `text` alone, and where each begins and ends in it, in characters.

        Tokens that share a character (parts of its bytes) all have that character's place.
        """
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

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
    def prefix(self) -> tuple[int, ...]:
        """What `encode` puts before a text."""
        return tuple(self._prefix)

    @property
    def suffix(self) -> tuple[int, ...]:
        """What `encode` puts after a text."""
        return tuple(self._suffix)

    @property
    def backend_json(self) -> str:
        """The content of a `tokenizer.json` that gives the same ids, without what is put around a text."""
        return self._backend.to_str()

    def digest(self) -> str:
        """SHA-256 of all that the ids of a text, or of a conversation, depend on."""
        template = self.chat_template
        described = {
            "backend": self._backend.to_str(),
            "around": (self._prefix, self._suffix),
            "ends": (sorted(self.stop_ids), self.eos_id),
            "control": sorted(self._control_ids),
            "template": (template.text, sorted(template.special_tokens.items())) if template else None,
        }
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    @property
    def control_ids(self) -> frozenset[int]:
        """Tokens that mark something and are not part of a text."""
        return self._control_ids


def byte_alphabet() -> dict[int, str]:
    """GPT-2's map from a byte to the visible character that stands for it in a vocabulary."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
