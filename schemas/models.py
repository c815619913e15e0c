"""What is said about models: those that are installed, and how far a pull is."""

from __future__ import annotations

import enum

import msgspec


class PullStage(enum.StrEnum):
    DOWNLOAD = "download"
    UNPACK = "unpack"


class PullProgress(msgspec.Struct, frozen=True):
    """How far a stage of a pull is, in bytes. A model that is there already is one finished download."""

    stage: PullStage
    done: int
    total: int


class ModelFile(msgspec.Struct, frozen=True):
    """One file of a model: its name in the store, size in bytes, SHA-256 in hexadecimal."""

    name: str
    size: int
    sha256: str


class InstalledModel(msgspec.Struct, frozen=True):
    """A model in the store, as its manifest says. `files[0]` is the one that is loaded."""

    name: str
    description: str
    license: str
    source: str
    files: tuple[ModelFile, ...]

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)
