"""A tokenizer from a model's path, without what its weights need: processes that only tokenize load no torch."""

from __future__ import annotations

from pathlib import Path

from .folder import ModelFolder
from .gguf import GGUFFile
from .tokenizer import Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """`path` is a GGUF file or a folder in Hugging Face's layout.

    Raises NoSuchModel, ModelDamaged, UnsupportedModel.
    """
    if path.is_dir():
        from .tokenizer_folder import tokenizer_from_folder

        return tokenizer_from_folder(ModelFolder(path))
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file)
