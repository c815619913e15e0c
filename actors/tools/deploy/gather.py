"""From a file or a package folder to an artifact: which files, which requirements, which tools.

Nothing of it is imported: what a tool needs is installed where it will run, not necessarily here.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....runtime.errors import ConfigError, UsageError
from ....schemas.tool_deploy import ArtifactFile, Manifest
from .archive import MAX_BYTES, MAX_FILES, check_manifest
from .requirements import lines_of_file, local_wheel
from .versions import check_specifier

_SCRIPT_BLOCK = re.compile(r"(?m)^# /// script[ \t]*\r?$\n(?P<lines>(^#(?:| .*)$\n)*?)^# ///[ \t]*\r?$")
_NOT_PACKED = {"__pycache__", "build", "dist", "node_modules", "venv"}
_GROUP = "callboard.tools"
_WHEELS = "_wheels"


@dataclass(frozen=True)
class Gathered:
    """A manifest, and the bytes of its files in its order."""

    manifest: Manifest
    contents: tuple[bytes, ...]


@dataclass(frozen=True)
class _Found:
    """What a source says of itself."""

    name: str
    version: str
    entry: str
    source: str
    requirements: tuple[str, ...]
    python: str
    files: dict[str, Path]
    base: Path


def gather(path: Path, *, name: str = "", version: str = "", requirements: Path | None = None) -> Gathered:
    """An artifact of a Python file, or of a folder with a `pyproject.toml`. Raises ConfigError, UsageError.

    `requirements` is a file with more of them, one a line. Without `version` a package has that of its
    `pyproject.toml`, and a file one made from its content. `name` is the set's name; of a package that announces
    several sets it says which.
    """
    if not path.exists():
        raise UsageError(f"there is no {path}", hint="name a Python file, or a folder with a pyproject.toml")
    found = _package(path, name) if path.is_dir() else _script(path)
    files = {place: _read(file) for place, file in found.files.items()}
    lines = [(line, found.base) for line in found.requirements]
    if requirements is not None:
        lines += [(line, requirements.parent) for line in lines_of_file(requirements)]
    resolved: list[str] = []
    for line, base in lines:
        wheel = local_wheel(line, base)
        if wheel is not None:
            place = f"{_WHEELS}/{wheel.name}"
            files[place] = _read(wheel)
            line = f"./{place}"
        if line not in resolved:
            resolved.append(line)
    if len(files) > MAX_FILES or sum(map(len, files.values())) > MAX_BYTES:
        raise ConfigError(
            f"{path} is too large to be sent: {len(files)} files, {sum(map(len, files.values())) >> 20} MiB",
            hint=f"at most {MAX_FILES} files and {MAX_BYTES >> 20} MiB: fetch large data from within the tool",
        )
    places = sorted(files)
    entries = tuple(
        ArtifactFile(place, len(files[place]), hashlib.sha256(files[place]).hexdigest(), _is_program(found, place))
        for place in places
    )
    content = hashlib.sha256(repr((entries, resolved)).encode()).hexdigest()[:12]
    manifest = Manifest(
        name=_checked(name or found.name, r"[A-Za-z0-9_-]{1,40}", "name for a set of tools", "--name"),
        version=_checked(
            version or found.version or content, r"[A-Za-z0-9][A-Za-z0-9._+-]{0,39}", "version", "--version"
        ),
        entry=found.entry,
        source=found.source,
        requirements=tuple(resolved),
        python=check_specifier(found.python),
        files=entries,
    )
    check_manifest(manifest)
    return Gathered(manifest, tuple(files[place] for place in places))


def _is_program(found: _Found, place: str) -> bool:
    file = found.files.get(place)
    return file is not None and bool(file.stat().st_mode & 0o100)


def _script(path: Path) -> _Found:
    if path.suffix != ".py":
        raise UsageError(f"{path} is no Python file", hint="name a .py file, or a folder with a pyproject.toml")
    if path.stem in sys.stdlib_module_names:
        raise UsageError(f"{path.name} is called like a module of Python's own", hint="rename the file")
    text = _read(path).decode("utf-8", "replace")
    said = _script_metadata(path, text)
    own = _table(said.get("tool", {}), "callboard", path)
    return _Found(
        name=str(own.get("name") or re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")),
        version=str(own.get("version", "")),
        entry=path.name,
        source="",
        requirements=_texts(said.get("dependencies", []), f"{path}: dependencies"),
        python=str(said.get("requires-python", "")),
        files={path.name: path},
        base=path.parent,
    )


def _script_metadata(path: Path, text: str) -> dict[str, Any]:
    """Inline script metadata (PEP 723): TOML in a block of comments that begins with `# /// script`."""
    blocks = list(_SCRIPT_BLOCK.finditer(text.replace("\r\n", "\n")))
    if len(blocks) > 1:
        raise ConfigError(f"{path} has {len(blocks)} blocks `# /// script`", hint="one says all of it")
    if not blocks:
        return {}
    lines = blocks[0]["lines"].splitlines()
    return _toml("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines), path)


def _package(folder: Path, name: str) -> _Found:
    project_file = folder / "pyproject.toml"
    if not project_file.is_file():
        raise UsageError(f"{folder} has no pyproject.toml", hint="name a Python file, or a package's folder")
    said = _toml(_read(project_file).decode("utf-8", "replace"), project_file)
    project = _table(said, "project", project_file)
    sets = _table(_table(project, "entry-points", project_file), _GROUP, project_file)
    if not sets:
        raise ConfigError(
            f"{project_file} announces no tools",
            hint=f'[project.entry-points."{_GROUP}"] with a line `my-tools = "my_package.tools:TOOLS"`',
        )
    if len(sets) > 1 and name not in sets:
        raise UsageError(f"{folder} announces several sets: {', '.join(sorted(sets))}", hint="choose one by --name")
    chosen = name if name in sets else next(iter(sets))
    for dynamic in ("dependencies", "entry-points"):
        if dynamic in project.get("dynamic", []):
            raise ConfigError(f"{project_file} leaves {dynamic} to its build", hint="state them in [project]")
    return _Found(
        name=chosen,
        version=str(project.get("version", "")),
        entry=str(sets[chosen]),
        source="src" if (folder / "src").is_dir() else "",
        requirements=_texts(project.get("dependencies", []), f"{project_file}: dependencies"),
        python=str(project.get("requires-python", "")),
        files=_files_of(folder),
        base=folder,
    )


def _files_of(folder: Path) -> dict[str, Path]:
    """All but what is hidden, made by a build, or compiled. Links are an error: they may lead out."""
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part in _NOT_PACKED or part.endswith(".egg-info") for part in parts):
            continue
        if path.is_symlink():
            raise ConfigError(f"{path} is a symbolic link, which is not sent", hint="put the file itself there")
        if path.is_file() and path.suffix != ".pyc":
            found["/".join(parts)] = path
            if len(found) > MAX_FILES:
                raise ConfigError(f"{folder} has more than {MAX_FILES} files", hint="is it the right folder?")
    return found


def _checked(text: str, form: str, what: str, option: str) -> str:
    if not re.fullmatch(form, text):
        raise UsageError(f"'{text}' is no {what}", hint=f"give one by {option}: at most 40 letters, digits, - and _")
    return text


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def _table(said: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    found = said.get(key, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: {key} is no table")
    return found


def _texts(said: Any, what: str) -> tuple[str, ...]:
    if not isinstance(said, list) or not all(isinstance(line, str) for line in said):
        raise ConfigError(f"{what} is no list of texts")
    return tuple(said)
