"""The settings that decide what a file's records become. Part of a cache's key: two that differ share nothing."""

from __future__ import annotations

import msgspec

from ...runtime.errors import ConfigError
from .lengths import TooLong


class DataOptions(msgspec.Struct, frozen=True):
    """`template`: "" is the model's own chat template, else a built-in one ("chatml", "alpaca"). `max_tokens`: of a
    sequence, 0 for any number. `skip_bad`: leave records out that cannot be used, in place of stopping at the first."""

    template: str = ""
    max_tokens: int = 0
    too_long: TooLong = TooLong.TRUNCATE
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 0 or self.max_tokens == 1:
            raise ConfigError(f"max_tokens is {self.max_tokens}", hint="0 for no limit, else 2 or more")
