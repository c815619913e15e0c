"""Programs of others, each in an environment of its own under `.venv-peers/`, for tests that use them unmodified."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).with_name("peers")


def python_of(name: str) -> Path:
    """The Python of `.venv-peers/NAME`, which is made if it is not what its requirements say."""
    folder = ROOT / ".venv-peers" / name
    requirements = PEERS / f"requirements-{name}.txt"
    stamp = folder / ".installed"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    folder.parent.mkdir(exist_ok=True)
    with open(folder.parent / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != wanted:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "-r", requirements], check=True)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


async def output(*command: str | Path, timeout: float, env: Mapping[str, str] | None = None) -> str:
    """What a program prints, while this process's own actors serve it. Its end with an error fails the test."""
    with anyio.fail_after(timeout):
        done = await anyio.run_process([str(word) for word in command], check=False, env={**os.environ, **(env or {})})
    assert done.returncode == 0, done.stderr.decode()[-6000:]
    return done.stdout.decode()
