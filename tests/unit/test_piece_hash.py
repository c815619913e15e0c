"""Digests of large values: the same however the bytes come, and what the definition says."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator

import pytest

from callboard.runtime import piece_hash
from callboard.runtime.piece_hash import PIECE, PieceHash, digest_of

SIZES = [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE - 5, 3 * PIECE]


@pytest.fixture(params=[1, 3], autouse=True)
def num_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(piece_hash, "num_threads", lambda: request.param)
    return request.param


def defined(data: bytes) -> str:
    pieces = [hashlib.sha256(data[at : at + PIECE]) for at in range(0, len(data), PIECE)]
    if len(pieces) < 2:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha256(b"".join(piece.digest() for piece in pieces)).hexdigest()


def parts(data: bytes, sizes: Iterator[int]) -> Iterator[bytes]:
    start = 0
    while start < len(data):
        size = next(sizes)
        yield data[start : start + size]
        start += size


@pytest.mark.parametrize("size", SIZES)
def test_a_digest_is_that_of_the_pieces_however_they_come(size: int) -> None:
    data = os.urandom(size)
    expected = defined(data)
    assert digest_of(data) == expected
    for step in (1_000_003, PIECE, 2 * PIECE + 7):
        hashed = PieceHash()
        for part in parts(data, itertools.repeat(step)):
            hashed.update(part)
        assert hashed.hexdigest() == expected


def test_a_large_part_after_a_small_one_fills_the_piece_first() -> None:
    data = os.urandom(4 * PIECE)
    hashed = PieceHash()
    for part in parts(data, iter([10, 3 * PIECE, PIECE])):
        hashed.update(part)
    assert hashed.hexdigest() == defined(data)


def test_pieces_in_another_order_are_another_value() -> None:
    first, second = os.urandom(PIECE), os.urandom(PIECE)
    assert digest_of(first + second) != digest_of(second + first)


def test_what_it_read_is_let_go() -> None:
    data = bytearray(3 * PIECE)
    digest_of(data)
    data.clear()  # BufferError where a view of it is left
