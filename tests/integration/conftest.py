"""Makes `company.py`, the actors that several of these tests share, importable as it is."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
