"""Text for continued pre-training: `{"text": ...}` a document, or a whole file, which comes in pieces."""

from __future__ import annotations

from typing import Any

import msgspec

from ..errors import Unfit
from ..samples import Document, Sample
from . import guanaco
from .format import Format, converted


class Text(msgspec.Struct):
    text: str


class Piece(msgspec.Struct):
    """Made by the reader of plain files, never found in one."""

    text: str
    begins: bool
    ends: bool


def _recognises(record: Any) -> bool:
    return isinstance(record, dict) and isinstance(record.get("text"), str) and not guanaco.FORMAT.recognises(record)


def _read(record: Any) -> Sample:
    text = converted(record, Text).text
    if not text.strip():
        raise Unfit("the text is empty")
    return Document(text)


def _read_piece(record: Any) -> Sample:
    piece = converted(record, Piece)
    return Document(piece.text, piece.begins, piece.ends)


FORMAT = Format("text", frozenset({"text"}), _recognises, _read)
PIECES = Format("plain text", frozenset(), lambda record: False, _read_piece)
