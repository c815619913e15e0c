"""The folders that Callboard uses. Light: `callboard --help` needs one of them, and neither messages nor errors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .files import private_folder

PREFIX = "CALLBOARD_"


@dataclass(frozen=True, slots=True)
class Paths:
    """The folders: `state` (one daemon each: its bus, its keys, its logs), `data` (models), `cache` (may be deleted
    at any time), `runtime` (gone after a restart of the machine). Each is made, for this person only, by `create`."""

    state: Path
    data: Path
    cache: Path
    runtime: Path

    def create(self) -> Paths:
        for folder in (self.state, self.data, self.cache, self.runtime):
            try:
                private_folder(folder)
            except OSError as error:
                from .errors import ConfigError

                raise ConfigError(
                    f"cannot make the folder {folder}: {error.strerror}",
                    hint=f"{PREFIX}STATE_DIR, {PREFIX}DATA_DIR and {PREFIX}CACHE_DIR name other ones",
                ) from error
        return self

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @classmethod
    def find(cls, state_dir: str = "", environment: Mapping[str, str] = os.environ) -> Paths:
        """From `state_dir` (a flag), the environment, or the platform's usual places. Makes nothing."""
        from platformdirs import PlatformDirs

        usual = PlatformDirs("callboard", appauthor=False)

        def place(name: str, fallback: Path) -> Path:
            return Path(environment.get(PREFIX + name) or fallback).expanduser().absolute()

        state = Path(state_dir).expanduser().absolute() if state_dir else place("STATE_DIR", usual.user_state_path)
        return cls(
            state=state,
            data=place("DATA_DIR", usual.user_data_path),
            cache=place("CACHE_DIR", usual.user_cache_path),
            runtime=place("RUNTIME_DIR", state / "run"),
        )
