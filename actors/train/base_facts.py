"""What is known of a model that something is made of, beside its numbers: its name on a hub, and its license."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from ..models.folder import CONFIG
from ..models.gguf import GGUFFile
from ..models.hub import is_hub_name, parse_hub_name
from ..models.store import ModelStore

_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*$", re.DOTALL | re.MULTILINE)
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([^\"'\n#]+?)[\"']?[ \t]*(?:#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class BaseFacts:
    """`hub`: ORG/NAME on the Hugging Face hub, empty where it is not from there. `license`: as the base says it, empty
    where it does not."""

    hub: str = ""
    license: str = ""


def base_facts(model: str, path: Path) -> BaseFacts:
    """Of the model that was called `model` and lies at `path`, a folder or a GGUF file."""
    hub = ""
    if is_hub_name(model):
        name = parse_hub_name(model)
        hub = name.repo if name.hub == "hf" else ""
    return BaseFacts(hub, _license(model, path))


def _license(model: str, path: Path) -> str:
    """What stands nearest to the weights counts: the file itself, the card beside it, then what the store was told."""
    if path.is_file():
        with GGUFFile(path) as file:
            named = file.metadata.get("general.license")
        if isinstance(named, str) and named:
            return named
    card = (path if (path / CONFIG).is_file() else path.parent) / "README.md"
    if card.is_file():
        front = _FRONT_MATTER.match(card.read_text("utf-8", errors="replace"))
        if front and (match := _LICENSE.search(front[1])):
            return match[1]
    return next((found.license for found in ModelStore().installed() if found.name == model), "")
