"""A model as the peers read it: from one GGUF file to a folder in Hugging Face's layout, in bfloat16.

They get the very weights that we serve, dequantized. `python -m callboard.actors.bench.model_folder FILE FOLDER` does
it in a process of its own, so that whoever measures has no torch in its memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ...runtime.processes import dying_with_us
from ..models.converted import convert, converted_folder
from .errors import BenchFailed

_TIMEOUT_S = 600.0


def model_folder(path: Path) -> Path:
    """The folder for a model: itself if it is one, else one in the cache, converted once for each content of the file.

    Its place stays the same, so that what peers compile for it is found again. Raises BenchFailed.
    """
    if path.is_dir():
        return path
    folder = converted_folder(path)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        in_own_process(__name__, (str(path), str(folder)), _TIMEOUT_S, f"converting {path} for the peers")
    return folder


def in_own_process(module: str, arguments: Sequence[str], timeout_s: float, what: str) -> None:
    """Run a module of ours to its end. Raises BenchFailed with the last that it said; `what` says what it did."""
    command = dying_with_us([sys.executable, "-P", "-m", module, *arguments])
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=True, env=env
        )
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:] or [str(error)]
        raise BenchFailed(f"{what} failed: {last[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise BenchFailed(f"{what} took over {timeout_s:g} s") from error


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
