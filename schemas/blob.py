"""Large values by reference: where their bytes are, and how to know that they are the right ones."""

from __future__ import annotations

from typing import Annotated

import msgspec

from .base import Message, Request

# Names of files and objects come off the bus: they must not lead out of the folder or the bucket.
Token = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{32})?$")]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Blob(msgspec.Struct, frozen=True):
    """A reference to bytes, to be put in a message in their place.

    `digest`, in hex, is the SHA-256 of the `size` bytes; of more than 4 MiB, that of the SHA-256s of its pieces of
    4 MiB in order, which many cores compute at once. A small value is all in `data`; of any other, `id` names the file
    or object, `lease` the folder in which its owner keeps it, `owner` the node to ask for it from another host.
    """

    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
    id: Token = ""
    lease: Token = ""
    owner: str = ""
    data: bytes = b""


class BlobShared(Message, frozen=True, tag="blob.shared"):
    """The object `id` is in the store. It stays `seconds` there, and may be asked for again after that."""

    id: Token
    seconds: float


class ShareBlob(Request[BlobShared], frozen=True, tag="blob.share"):
    """Ask a node (`node.<owner>`) to put a blob that it holds where other hosts can read it."""

    id: Token


class Detour(msgspec.Struct, frozen=True, array_like=True):
    """What stands on the bus in the place of a message over the server's limit: the message itself is in the blob.

    `taken` is the subject to tell when its bytes were read, so that they go. `node` and `inbox` are the sender's names:
    what comes from it later must not overtake this.
    """

    blob: Blob
    taken: str
    node: str
    inbox: str
