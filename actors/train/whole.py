"""What a command writes is there whole or not at all, also after a crash: made beside its place, synced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...runtime.errors import ConfigError


def check_free(out: Path, option: str = "--out") -> None:
    """ConfigError where something is in the way of what is to come; said before the work."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already", hint=f"name another place with `{option}`, or remove it")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into that becomes `out`, which is absent or empty, when the block ends; gone if it raises."""
    making = _beside(out)
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    try:
        yield making
        for path in making.iterdir():
            if path.is_file():
                _sync(path)
        _sync(making)
        if out.is_dir():
            out.rmdir()  # an empty one, see `check_free`
        os.rename(making, out)
        _sync(out.parent)
    except BaseException:
        shutil.rmtree(making, ignore_errors=True)
        raise


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """The path of a file to write that becomes `out` when the block ends; gone if it raises."""
    making = _beside(out)
    making.parent.mkdir(parents=True, exist_ok=True)
    making.unlink(missing_ok=True)
    try:
        yield making
        _sync(making)
        os.replace(making, out)
        _sync(out.parent)
    except BaseException:
        making.unlink(missing_ok=True)
        raise


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.making")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
