"""Imports run one way: schemas <- kernels, runtime <- actors <- tui. Foreign libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
TOP = ("schemas", "kernels", "runtime", "actors", "tui")

# What the modules of a zone may import beside their own zone. A zone is a top folder or a capability's folder.
MAY_IMPORT = {
    "": {"runtime", "schemas", "actors/tools"},  # its lazy names: who writes a tool imports `tool` from the root
    "schemas": set[str](),
    "kernels": {"schemas"},
    "runtime": {"schemas"},
    "actors": set[str](),
    "actors/models": {"runtime", "kernels", "schemas"},
    "tui": {"runtime", "schemas"},
}
CAPABILITY = {"runtime", "kernels", "schemas", "actors/models", "actors/data"}

# Libraries that only these files and folders may import.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "nats": ("runtime/bus.py", "runtime/jetstream.py", "runtime/object_store.py", "actors/bench/"),
    "nkeys": ("runtime/credentials.py",),
    "textual": ("tui/",),
}
LANGUAGE_MODELS = {"torch", "transformers", "tokenizers", "gguf", "safetensors", "jinja2", "peft", "triton", "numpy"}
WITHOUT_LANGUAGE_MODELS = {"", "schemas", "runtime", "tui"}


class Import(NamedTuple):
    line: int
    ours: bool
    path: tuple[str, ...]


def imports(source: str, file: str) -> Iterator[Import]:
    """Everything that a module of the package imports, at any depth of its code, resolved by folder."""
    package = Path(file).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, False, tuple(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level == 0:
                yield Import(node.lineno, False, module)
                continue
            if node.level > len(package) + 1:
                yield Import(node.lineno, True, ("..",))
                continue
            base = package[: len(package) - node.level + 1]
            for alias in node.names:
                yield Import(node.lineno, True, (*base, *module, alias.name))


def zone_of(parts: tuple[str, ...]) -> str:
    """The zone of a folder, or of what is imported."""
    top = parts[:1]
    if top == ("actors",):
        return "/".join(parts[:2])
    return "".join(top) if set(top) <= set(TOP) else ""


def violations(source: str, file: str) -> list[str]:
    """One line for each import in `source`, the text of the package's module `file`, that runs the wrong way."""
    zone = zone_of(Path(file).parent.parts)
    allowed = MAY_IMPORT.get(zone, CAPABILITY) | {zone}
    found: list[str] = []
    for line, ours, path in imports(source, file):
        where = f"{file}:{line}"
        if ours:
            target = zone_of(path)
            if path == ("__version__",):
                continue
            if path == ("..",):
                found.append(f"{where}: reaches out of the package")
            elif target not in allowed and not (zone == "actors/bench" and target.startswith("actors/")):
                found.append(f"{where}: {zone or 'the root'} may not import {target or '.'.join(path)}")
        elif path[0] == "callboard":
            found.append(f"{where}: inside the package imports are relative")
        elif (owners := ONLY_IN.get(path[0], ())) and not file.startswith(owners):
            found.append(f"{where}: only {', '.join(owners)} may import {path[0]}")
        elif path[0] in LANGUAGE_MODELS and zone in WITHOUT_LANGUAGE_MODELS:
            found.append(f"{where}: {zone or 'the root'} knows nothing of language models, so not of {path[0]}")
    return found


def package_files() -> Iterator[Path]:
    yield from ROOT.glob("*.py")
    for folder in TOP:
        yield from (ROOT / folder).rglob("*.py")


def test_every_import_of_the_package_runs_the_right_way() -> None:
    found = [
        line for path in package_files() for line in violations(path.read_text(), path.relative_to(ROOT).as_posix())
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("schemas/serve.py", "from ..runtime.errors import CallboardError"),
        ("kernels/ops.py", "from ..runtime import errors"),
        ("kernels/ops.py", "from ..actors.models.config import LlamaConfig"),
        ("runtime/cli.py", "def run():\n    from ..actors.serve.commands import chat"),
        ("runtime/cli.py", "from ..tui import app"),
        ("runtime/node.py", "from .. import actors"),
        ("runtime/node.py", "from .. import __version__, actors"),
        ("runtime/node.py", "import torch.nn"),
        ("runtime/deep/node.py", "from ...kernels import ops"),
        ("runtime/node.py", "import nats"),
        ("runtime/server.py", "from nats.aio.client import Client"),
        ("runtime/bus.py", "import nkeys"),
        ("runtime/cli.py", "from textual.app import App"),
        ("actors/serve/engine.py", "from ..train.shard import Shard"),
        ("actors/serve/engine.py", "from .. import agent"),
        ("actors/models/store.py", "from ..serve.engine import Engine"),
        ("actors/models/store.py", "from ..data.samples import Turn"),
        ("actors/data/rendering.py", "from ..serve.engine import Engine"),
        ("actors/serve/engine.py", "from nats.aio.msg import Msg"),
        ("actors/serve/engine.py", "from ...tui.app import App"),
        ("tui/app.py", "from ..actors.serve.engine import Engine"),
        ("__init__.py", "from .actors.serve import Engine"),
        ("actors/serve/engine.py", "from callboard.runtime.actor import Actor"),
        ("actors/serve/engine.py", "from ....elsewhere import thing"),
        ("schemas/base.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..kernels import ops"),
    ],
)
def test_an_import_that_runs_the_wrong_way_is_found(file: str, source: str) -> None:
    assert len(violations(source, file)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("runtime/node.py", "from ..schemas.base import Message\nfrom .actor import Actor\nfrom . import refs"),
        ("runtime/bus.py", "import nats"),
        ("kernels/ops.py", "import torch\nfrom ..schemas import base"),
        (
            "actors/serve/engine.py",
            "from ..models.config import LlamaConfig\nfrom .. import models\nfrom ...kernels import ops\nimport torch",
        ),
        ("actors/train/shard.py", "from ..data.samples import Turn"),
        ("actors/data/rendering.py", "from ..models.tokenizer import Tokenizer"),
        ("actors/bench/serve.py", "from ..serve.engine import Engine\nimport nats"),
        ("tui/app.py", "from ..runtime.client import connect\nimport textual"),
        ("__init__.py", "from .runtime.node import Node"),
    ],
)
def test_an_import_that_runs_the_right_way_is_let_pass(file: str, source: str) -> None:
    assert violations(source, file) == []


def test_every_folder_with_code_is_a_package_that_the_distribution_names() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        named = tomllib.load(file)["tool"]["setuptools"]["packages"]
    folders = {path.relative_to(ROOT).parent.parts for path in package_files()}
    assert sorted(".".join(("callboard", *parts)) for parts in folders) == sorted(named)
    assert all((ROOT.joinpath(*parts) / "__init__.py").exists() for parts in folders)


def modules_after(program: str) -> set[str]:
    """The modules that a fresh Python has loaded after `program`."""
    script = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_importing_callboard_loads_nothing_else() -> None:
    loaded = modules_after("import callboard")
    assert not [name for name in loaded if name.startswith("callboard.")]
    assert not loaded & {"msgspec", "anyio", "asyncio", "nats"}


def test_help_loads_no_heavy_library() -> None:
    command = Path(sys.executable).with_name("callboard")
    loaded = modules_after(
        f"import runpy\nsys.argv = [{str(command)!r}, '--help']\n"
        f"try:\n    runpy.run_path({str(command)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert "callboard.runtime.cli" in loaded
    assert not loaded & (LANGUAGE_MODELS | {"nats", "nkeys", "textual", "ray", "uvloop", "psutil"})
