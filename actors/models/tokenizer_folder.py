"""A tokenizer from a model's folder: `tokenizer.json` with the settings and templates beside it.

`tokenizers` encodes, whatever the algorithm. What each token stands for is worked out here, by the decoder that the
file names, because a stream of tokens must become text piece by piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from tokenizers import Tokenizer as Backend

from ...runtime.errors import ModelDamaged
from .chat_template import ChatTemplate
from .errors import UnsupportedModel
from .folder import ModelFolder
from .tokenizer import LOOSE_TOKEN_BYTES, FirstSpace, Tokenizer, byte_alphabet

Spell: TypeAlias = Callable[[str, int], bytes]

TOKENIZER = "tokenizer.json"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def tokenizer_from_folder(folder: ModelFolder) -> Tokenizer:
    """Raises ModelDamaged, and UnsupportedModel for a decoder that is not known here."""
    settings = folder.json("tokenizer_config.json", optional=True)
    text = folder.text(TOKENIZER)
    if text is None:
        raise UnsupportedModel(
            f"{folder.path} has no {TOKENIZER}",
            hint="transformers writes one: AutoTokenizer.from_pretrained(PATH).save_pretrained(PATH)",
        )
    described = folder.json(TOKENIZER)
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # what `tokenizers` raises has no type of its own
        raise ModelDamaged(f"{folder.path / TOKENIZER} is damaged: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    special = special_tokens(folder, settings)
    added = backend.get_added_tokens_decoder()
    table, first_space = _Vocabulary(folder.path / TOKENIZER, backend, described, frozenset(added)).table()
    prefix, suffix = _around(backend, settings, special)
    return Tokenizer(
        backend,
        table,
        control_ids=frozenset(i for i, token in added.items() if token.special),
        stop_ids=_stop_ids(folder, backend, special),
        eos_id=backend.token_to_id(special["eos_token"]) if "eos_token" in special else None,
        prefix=prefix,
        suffix=suffix,
        first_space=first_space,
        longest_token_bytes=None if _is_exact(described) else LOOSE_TOKEN_BYTES,
        chat_template=_chat_template(folder, settings, special),
    )


class _Vocabulary:
    """What each id stands for, by the steps of the file's decoder."""

    def __init__(self, where: Path, backend: Backend, described: Mapping[str, Any], added: frozenset[int]) -> None:
        self._where = where
        self._backend = backend
        self._added = added
        self._steps = list(_steps(described.get("decoder")))
        self._kinds = {step.get("type") for step in self._steps}

    def table(self) -> tuple[list[bytes], FirstSpace]:
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        table = [b""] * (max(vocabulary.values(), default=-1) + 1)
        spell, first_space = self._spelling()
        for token, i in vocabulary.items():
            table[i] = spell(token, i)
        return table, first_space

    def _spelling(self) -> tuple[Spell, FirstSpace]:
        """(from a token and its id to its bytes inside a text, what becomes of the space at the text's start)."""
        kinds = self._kinds
        if "ByteLevel" in kinds and kinds <= {"ByteLevel", "Fuse"}:
            byte_of = {character: byte for byte, character in byte_alphabet().items()}
            added = self._added
            return lambda token, i: token.encode() if i in added else _bytes_in(token, byte_of), FirstSpace.KEPT
        if kinds & {"Replace", "Metaspace"} and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
            return self._pieces()
        if kinds == {"WordPiece"}:
            # What follows a word does not depend on the word; "x" is one that punctuation may follow.
            decode = self._backend.decoder.decode
            return lambda token, _: decode(["x", token])[1:].encode(), FirstSpace.DROPPED
        if not kinds:
            return lambda token, _: f" {token}".encode(), FirstSpace.DROPPED
        named = ", ".join(str(step.get("type")) for step in self._steps)
        raise UnsupportedModel(f"{self._where} decodes by the steps {named}, which are not known here")

    def _pieces(self) -> tuple[Spell, FirstSpace]:
        """SentencePiece: a visible character stands for a space, and a byte without a token of its own is `<0xNN>`."""
        swaps: list[tuple[str, str]] = []
        first_space = FirstSpace.KEPT
        for step in self._steps:
            kind = step["type"]
            if kind == "Replace":
                pattern = step.get("pattern", {}).get("String")
                if pattern is None:
                    raise UnsupportedModel(f"{self._where} decodes by a regular expression, which is not known here")
                swaps.append((pattern, step["content"]))
            elif kind == "Metaspace":
                swaps.append((step["replacement"], " "))
                if step.get("prepend_scheme", "always") != "never":
                    first_space = FirstSpace.DROPPED
            elif kind == "Strip":
                if (step.get("content"), step.get("start"), step.get("stop")) != (" ", 1, 0):
                    raise UnsupportedModel(f"{self._where} strips text in a way that is not known here")
                first_space = FirstSpace.DROPPED
        has_bytes = "ByteFallback" in self._kinds

        def spell(token: str, _: int) -> bytes:
            match = _BYTE_TOKEN.fullmatch(token) if has_bytes else None
            if match is not None:
                return bytes([int(match[1], 16)])
            for pattern, content in swaps:
                token = token.replace(pattern, content)
            return token.encode()

        return spell, first_space


def _steps(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder is None:
        return
    if decoder.get("type") == "Sequence":
        for inner in decoder.get("decoders", ()):
            yield from _steps(inner)
    else:
        yield decoder


def _bytes_in(token: str, byte_of: Mapping[str, int]) -> bytes:
    """Bytes spelled in GPT-2's alphabet; a token with another character in it is literal text."""
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token)
    return token.encode()


def _is_exact(described: Mapping[str, Any]) -> bool:
    """Whether text reaches the splitting unchanged, and all of it can be spelled in bytes."""
    pre = described.get("pre_tokenizer") or {}
    kinds = {step.get("type") for step in pre.get("pretokenizers", [pre])}
    return described.get("normalizer") is None and "ByteLevel" in kinds


def _around(
    backend: Backend, settings: Mapping[str, Any], special: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(ids before, ids after) a text, as the file's template and the settings `add_bos_token`, `add_eos_token` say."""
    sample = "a"
    bare = backend.encode(sample, add_special_tokens=False).ids
    dressed = backend.encode(sample, add_special_tokens=True).ids
    places = [i for i in range(len(dressed) - len(bare) + 1) if dressed[i : i + len(bare)] == bare]
    at = places[0] if places and bare else len(dressed)
    prefix, suffix = dressed[:at], dressed[at + len(bare) :]
    for setting, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
        token_id = backend.token_to_id(special[name]) if name in special else None
        wanted = settings.get(setting)
        if token_id is None or not isinstance(wanted, bool):
            continue
        if name == "bos_token":
            prefix = [i for i in prefix if i != token_id]
            prefix = [token_id, *prefix] if wanted else prefix
        else:
            suffix = [i for i in suffix if i != token_id]
            suffix = [*suffix, token_id] if wanted else suffix
    return tuple(prefix), tuple(suffix)


def special_tokens(folder: ModelFolder, settings: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... and their texts."""
    found: dict[str, str] = {}
    for source in (folder.json("special_tokens_map.json", optional=True), settings):
        for name, value in source.items():
            content = value.get("content") if isinstance(value, Mapping) else value
            if name.endswith("_token") and isinstance(content, str):
                found[name] = content
    return found


def _stop_ids(folder: ModelFolder, backend: Backend, special: Mapping[str, str]) -> frozenset[int]:
    """The tokens that end a turn: those that the generation settings name (else the model's), and the tokenizer's."""
    ids: set[int] = set()
    for source in (folder.json("generation_config.json", optional=True), folder.config):
        value = source.get("eos_token_id")
        if value is not None:
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and i >= 0 for i in values):
                raise ModelDamaged(f"{folder.path}: 'eos_token_id' is {value!r}")
            ids.update(values)
            break
    if "eos_token" in special:
        token_id = backend.token_to_id(special["eos_token"])
        if token_id is not None:
            ids.add(token_id)
    return frozenset(ids)


def _chat_template(folder: ModelFolder, settings: Mapping[str, Any], special: Mapping[str, str]) -> ChatTemplate | None:
    text = folder.text("chat_template.jinja")
    if text is None:
        text = settings.get("chat_template") or folder.json("chat_template.json", optional=True).get("chat_template")
    if isinstance(text, Sequence) and not isinstance(text, str):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in text if isinstance(entry, Mapping)}
        text = named.get("default")
    return ChatTemplate(text, special) if isinstance(text, str) else None
