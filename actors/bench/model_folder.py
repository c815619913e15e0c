"""A model as the peers read it: from one GGUF file to a folder in Hugging Face's layout, in bfloat16.

They get the very weights that we serve, dequantized. `python -m callboard.actors.bench.model_folder FILE FOLDER` does
it in a process of its own, so that whoever measures has no torch in its memory.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ...runtime.folders import Paths
from ...runtime.processes import dying_with_us
from .errors import BenchFailed

_TIMEOUT_S = 600.0


def model_folder(path: Path) -> Path:
    """The folder for a model: itself if it is one, else one in the cache, converted once for each content of the file.

    Its place stays the same, so that what peers compile for it is found again. Raises BenchFailed.
    """
    if path.is_dir():
        return path
    what = path.stat()
    folder = Paths.find().create().cache / "bench" / f"{path.stem}-{what.st_size:x}-{what.st_mtime_ns:x}"
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        command = [sys.executable, "-P", "-m", __name__, str(path), str(folder)]
        try:
            subprocess.run(
                dying_with_us(command),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        except subprocess.CalledProcessError as error:
            last = error.stderr.strip().splitlines()[-1:] or [str(error)]
            raise BenchFailed(f"{path} could not be converted for the peers: {last[0]}") from error
        except subprocess.TimeoutExpired as error:
            raise BenchFailed(f"converting {path} for the peers took over {_TIMEOUT_S:g} s") from error
    return folder


def convert(path: Path, folder: Path) -> None:
    """Write the folder; it is there whole or not at all."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from ..models.config import LlamaConfig
    from ..models.gguf import GGUFFile
    from ..models.weights import gguf_weights

    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with GGUFFile(path) as file:
            weights = gguf_weights(file, LlamaConfig.from_gguf(file))
            tensors = {name: tensor.to(torch.bfloat16) for name, tensor in weights}
        save_file(tensors, staging / "model.safetensors", metadata={"format": "pt"})
        config = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name, dtype="bfloat16")
        config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
        config.tie_word_embeddings = "lm_head.weight" not in tensors
        config.save_pretrained(staging)
        AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(staging)
        os.rename(staging, folder)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
