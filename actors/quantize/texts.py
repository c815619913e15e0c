"""Text for calibration from a file: plain text, or JSON and JSON lines of the formats that models are trained on.

Alpaca (`instruction`, `input`, `output`), OpenAI (`messages` of `role` and `content`), Guanaco (`text`), ShareGPT and
MOSS (`conversations` of `from` and `value`; `chat` of turns by name), and whatever has a `text`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ...runtime.errors import UsageError


def read_texts(path: Path) -> list[str]:
    """The texts of a file, one for each sample. Raises UsageError where there are none or it cannot be read."""
    try:
        content = path.read_text("utf-8")
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no text: {error}") from error
    if path.suffix not in (".json", ".jsonl"):
        texts = [content]
    else:
        texts = [text for number, sample in _samples(path, content) for text in [_text(path, number, sample)]]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"{path} holds no text")
    return texts


def _samples(path: Path, content: str) -> Iterator[tuple[int, object]]:
    try:
        if path.suffix == ".json":
            whole = msgspec.json.decode(content)
            yield from enumerate(whole if isinstance(whole, list) else [whole], 1)
            return
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                yield number, msgspec.json.decode(line)
    except msgspec.DecodeError as error:
        raise UsageError(f"{path} is no {path.suffix[1:].upper()}: {error}") from error


def _text(path: Path, number: int, sample: object) -> str:
    if isinstance(sample, str):
        return sample
    if isinstance(sample, Mapping):
        parts = list(_parts(sample))
        if parts:
            return "\n\n".join(parts)
    raise UsageError(
        f"{path}: sample {number} is of no format that is read here",
        hint="Alpaca, OpenAI messages, ShareGPT, MOSS, Guanaco, or objects with a 'text'",
    )


def _parts(sample: Mapping[str, Any]) -> Iterator[str]:
    """What is said in a sample, in its order."""
    turns = sample.get("messages") or sample.get("conversations") or sample.get("conversation")
    if isinstance(turns, list):
        for turn in turns:
            if isinstance(turn, Mapping):
                yield from _strings(turn, ("content", "value", "human", "assistant"))
    elif isinstance(chat := sample.get("chat"), Mapping):
        for turn in chat.values():
            if isinstance(turn, Mapping):
                yield from (said for said in turn.values() if isinstance(said, str))
    else:
        yield from _strings(sample, ("text", "instruction", "input", "prompt", "output", "response", "completion"))


def _strings(values: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        value = values.get(name)
        if isinstance(value, str) and value:
            yield value
        elif isinstance(value, list):  # a message in pieces
            yield from (piece["text"] for piece in value if isinstance(piece, Mapping) and "text" in piece)
