"""What a model's folder has beside its weights: tokenizer, chat template, settings of generation."""

from __future__ import annotations

import shutil
from pathlib import Path

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json", ".md", ".gitattributes")


def copy_companions(base: Path, folder: Path) -> None:
    """Into the folder of a model that is made of `base`; what is there already stays."""
    for path in base.iterdir():
        if path.is_file() and not path.name.endswith(_NOT_COPIED) and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
