"""A model as transformers reads it: a folder in Hugging Face's layout, made once from a GGUF file."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...runtime.folders import Paths

if TYPE_CHECKING:
    from .gguf import GGUFFile

# Goes up when folders are made otherwise, so that old ones are not taken for new ones.
_LAYOUT = 2


def converted_folder(path: Path) -> Path:
    """Where the folder for the model at `path` is or will be: itself if it is one, else one in the cache.

    The place is the same as long as the file is.
    """
    if path.is_dir():
        return path
    what = path.stat()
    name = f"{path.stem}-{what.st_size:x}-{what.st_mtime_ns:x}-{_LAYOUT}"
    return Paths.find().create().cache / "folders" / name


def transformers_folder(path: Path) -> Path:
    """The folder for the model at `path`, made now if it is not there. Raises as `convert` does."""
    folder = converted_folder(path)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        convert(path, folder)
    return folder


def convert(path: Path, folder: Path, dtype: str = "bfloat16") -> None:
    """Write the GGUF file's weights, in `dtype`, its configuration and tokenizer; the folder is there whole or not at
    all. Raises ModelDamaged, UnsupportedModel."""
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write_converted(path, staging, dtype)
        try:
            os.rename(staging, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same
                raise
            shutil.rmtree(staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def write_converted(path: Path, folder: Path, dtype: str) -> None:
    """As `convert`, into a folder that is there."""
    from safetensors.torch import save_file

    from .config import LlamaConfig
    from .config_to_hf import config_to_hf
    from .gguf import GGUFFile
    from .loading import dtype_of
    from .weights import gguf_weights

    with GGUFFile(path) as file:
        shape = LlamaConfig.from_gguf(file)
        tensors = {name: tensor.to(dtype_of(dtype)) for name, tensor in gguf_weights(file, shape)}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config_to_hf(shape, file, dtype).save_pretrained(folder)
        write_tokenizer(file, folder)


def write_tokenizer(file: GGUFFile, folder: Path) -> None:
    """The file's tokenizer as it is read here, whose rules transformers' own reader of GGUF does not all know."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import processors
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from .tokenizer_gguf import special_tokens, tokenizer_from_gguf

    tokenizer = tokenizer_from_gguf(file)
    special = special_tokens(file)
    backend = Backend.from_str(tokenizer.backend_json)
    if tokenizer.prefix:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.prefix[0])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)
    if tokenizer.chat_template is not None:
        fast.chat_template = tokenizer.chat_template.text
    fast.save_pretrained(folder)
    if tokenizer.stop_ids:
        GenerationConfig(eos_token_id=sorted(tokenizer.stop_ids)).save_pretrained(folder)
