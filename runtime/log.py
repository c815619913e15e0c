"""The runtime's logger. What it prints where is the entry point's choice."""

from __future__ import annotations

import logging

log = logging.getLogger("callboard")
