"""Who answers, as far as this machine knows."""

from __future__ import annotations

import getpass


def whoami() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ""
