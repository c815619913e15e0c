"""A model as transformers reads it: a folder in Hugging Face's layout, made once from a GGUF file."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from ...runtime.folders import Paths


def converted_folder(path: Path) -> Path:
    """Where the folder for the model at `path` is or will be: itself if it is one, else one in the cache.

    The place is the same as long as the file is.
    """
    if path.is_dir():
        return path
    what = path.stat()
    return Paths.find().create().cache / "folders" / f"{path.stem}-{what.st_size:x}-{what.st_mtime_ns:x}"


def transformers_folder(path: Path) -> Path:
    """The folder for the model at `path`, made now if it is not there. Raises as `convert` does."""
    folder = converted_folder(path)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        convert(path, folder)
    return folder


def convert(path: Path, folder: Path) -> None:
    """Write the GGUF file's weights, in bfloat16, its configuration and tokenizer; the folder is there whole or not at
    all. Raises ModelDamaged, UnsupportedModel."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from .config import LlamaConfig
    from .gguf import GGUFFile
    from .weights import gguf_weights

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
        try:
            os.rename(staging, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same
                raise
            shutil.rmtree(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
