"""Who signs tools: an Ed25519 key in this person's configuration folder, and the check of a signature.

A public key is written `ed25519:` and 43 characters of base64url, so that it goes through flags, TOML and labels as it
is.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from pathlib import Path

from ....runtime.errors import ConfigError
from ....runtime.files import write_private
from .errors import ToolUntrusted

_PUBLIC = "ed25519:"
_SECRET = "ed25519-secret:"
_PUBLIC_FORM = re.compile(r"ed25519:[A-Za-z0-9_-]{43}")
_KEY_BYTES = 32
# What else this key may ever sign begins otherwise, so that no signature can be taken for one of another kind.
_WHAT_IS_SIGNED = b"callboard tool artifact 1\0"


@dataclass(frozen=True)
class Signer:
    """A key that signs. Its secret half is never printed."""

    public: str
    _seed: bytes = field(repr=False)

    def sign(self, manifest: bytes) -> str:
        """The signature of a manifest, in hex."""
        from nacl.signing import SigningKey

        return SigningKey(self._seed).sign(_WHAT_IS_SIGNED + manifest).signature.hex()


def key_file() -> Path:
    from platformdirs import user_config_path

    return user_config_path("callboard", appauthor=False) / "tool-signer.key"


def new_signer(path: Path) -> Signer:
    """A new key, kept at `path` with mode 0600. Raises ConfigError where there is one: nodes may know it."""
    from nacl.signing import SigningKey

    seed = bytes(SigningKey.generate())
    try:
        write_private(path, _SECRET + _text(seed) + "\n", exclusive=True)
    except FileExistsError:
        raise ConfigError(
            f"there is a signer's key already: {path}",
            hint="`callboard tool key show` prints its public half; remove the file by hand to begin anew",
        ) from None
    return _signer(seed)


def load_signer(path: Path) -> Signer:
    """Raises ConfigError where there is none, it is no key, or others may read it."""
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except FileNotFoundError:
        raise ConfigError("there is no key to sign tools with", hint="`callboard tool key new` makes one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a signer's key: {error}") from error
    if mode & 0o077:
        raise ConfigError(f"others may read the signer's key {path}", hint=f"chmod 600 '{path}'")
    seed = _bytes(text.removeprefix(_SECRET)) if text.startswith(_SECRET) else None
    if seed is None:
        raise ConfigError(f"{path} holds no signer's key", hint="restore it from a backup, or remove it for a new one")
    return _signer(seed)


def check_public_key(key: str) -> str:
    """`key` as it is, if it is a public key. Raises ConfigError."""
    if not _PUBLIC_FORM.fullmatch(key) or _bytes(key.removeprefix(_PUBLIC)) is None:
        raise ConfigError(
            f"'{key}' is no public key of a signer of tools",
            hint="`callboard tool key show` prints one: ed25519: and 43 characters",
        )
    return key


def check_signature(manifest: bytes, signer: str, signature: str, allowed: tuple[str, ...], where: str) -> None:
    """That a signer whom `where` (a node's name, for people) allows signed these very bytes. Raises ToolUntrusted."""
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    if signer not in allowed:
        raise unknown_signer(where, signer)
    try:
        key = _bytes(signer.removeprefix(_PUBLIC))
        VerifyKey(key or b"").verify(_WHAT_IS_SIGNED + manifest, bytes.fromhex(signature))
    except (BadSignatureError, ValueError, TypeError) as error:
        raise ToolUntrusted(
            f"the signature of {signer} is not of this artifact",
            hint="it was changed after it was signed, or not signed by that key: deploy it anew",
        ) from error


def unknown_signer(node: str, signer: str) -> ToolUntrusted:
    signer = signer[:60]  # it may be anything
    return ToolUntrusted(
        f"node {node} takes no tools of the signer {signer}",
        hint=f"if it should: `callboard node --allow-tools-from {signer}`, or allow_tools_from in its table [node]",
    )


def _signer(seed: bytes) -> Signer:
    from nacl.signing import SigningKey

    return Signer(_PUBLIC + _text(bytes(SigningKey(seed).verify_key)), seed)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _bytes(text: str) -> bytes | None:
    """The 32 bytes of a key, None for anything else: also for a second way to write the same ones."""
    try:
        data = base64.b64decode(text + "=", altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    return data if len(data) == _KEY_BYTES and _text(data) == text else None
