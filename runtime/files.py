"""Files that hold what is ours alone: written whole or not at all, readable by this person only."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def private_folder(path: Path) -> Path:
    """`path`, made with its parents if it is not there; only this person may look into it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def write_private(path: Path, content: str | bytes, *, exclusive: bool = False) -> None:
    """Puts `content` at `path` with mode 0600: a reader sees the old file or the new one, never half of it.

    With `exclusive`, FileExistsError where the file is there already.
    """
    private_folder(path.parent)
    data = content.encode() if isinstance(content, str) else content
    # mkstemp opens with O_EXCL and mode 0600.
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if exclusive:
            os.link(name, path)
            os.unlink(name)
        else:
            os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
