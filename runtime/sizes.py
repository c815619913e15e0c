"""Amounts of memory as people write them."""

from __future__ import annotations

import re

from .errors import ConfigError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes, from `4GiB`, `512 MB`, `1000`. Raises ConfigError."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"'{text}' is no amount of memory", hint="write it as 4GiB, 512MB or a number of bytes")
    unit = (found[2] or "").lower()
    return int(float(found[1]) * ({**_UNITS, **_BINARY}[unit]))


def format_size(num_bytes: int) -> str:
    """`3.9 GiB`."""
    value = float(num_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
