"""A short name for a prompt: events keep it in the prompt's place, and whoever makes the prompt again can compare."""

from __future__ import annotations

import hashlib

import msgspec

from ...schemas.agent_log import ModelRequest

_encode = msgspec.msgpack.Encoder().encode


def digest(request: ModelRequest) -> str:
    return hashlib.blake2b(_encode(request), digest_size=8).hexdigest()
