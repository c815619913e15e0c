"""The folders that may be read. A model names a file as `root/path/below`, or without the root where there is one."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path

from .....runtime.errors import ConfigError
from .beneath import FileRefused, open_beneath


class Roots:
    """Open folders by name. Each is opened once: what its path leads to later plays no part."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        if not folders:
            raise ConfigError(
                "no folder may be read",
                hint='`[tools.files.roots]` of callboard.toml names them: docs = "/home/me/docs"',
            )
        self._open: dict[str, int] = {}
        self.paths: dict[str, Path] = {}
        self._finalizer = weakref.finalize(self, _close, self._open)
        for name, folder in folders.items():
            if not name or "/" in name or name in (".", ".."):
                raise ConfigError(f"'{name}' is no name for a folder", hint="a name has no slashes")
            path = Path(folder).expanduser()
            try:
                self._open[name] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise ConfigError(f"the folder {folder} cannot be opened: {error.strerror}") from error
            self.paths[name] = path.absolute()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._open)

    def close(self) -> None:
        self._finalizer()

    def place(self, path: str) -> tuple[str, str]:
        """The root that a path names, and what is below it. Raises FileRefused."""
        if path.startswith("/"):
            for name, folder in self.paths.items():
                below = os.path.relpath(os.path.normpath(path), folder)
                if below != ".." and not below.startswith("../"):
                    return name, "" if below == "." else below
            raise FileRefused(f"'{path}' is in no folder that may be read", hint=self._hint())
        first, _, rest = path.removeprefix("./").partition("/")
        if first in self._open:
            return first, rest.strip("/")
        if len(self._open) == 1:
            return next(iter(self._open)), "" if path in ("", ".") else path.strip("/")
        raise FileRefused(f"'{path}' begins with no folder that may be read", hint=self._hint())

    def open(self, path: str, *, directory: bool = False) -> int:
        """A descriptor of a file below a root; the caller closes it. Raises FileRefused."""
        name, below = self.place(path)
        return open_beneath(self._open[name], below, directory=directory)

    def open_root(self, name: str) -> int:
        return open_beneath(self._open[name], ".", directory=True)

    def _hint(self) -> str:
        return f"paths begin with one of: {', '.join(f'{name}/' for name in self._open)}"


def _close(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])
