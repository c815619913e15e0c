"""A session's state as bytes, made and read only in a sandbox: unpickling is running code.

Modules are kept by name, functions and classes by their source, all other values by pickle, together, so that two
names of one list stay two names of one list. What cannot be kept is named with the reason, never silently left out.

The file: the header's length, the header (JSON), the pickle.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import types
from typing import Any

from .frames import LENGTH

_NOT_STATE = ("_", "display")
# Default arguments are values of the time when a function was defined: running its source again would make others.
_DEFAULTS = " (default arguments)"


def save(module: types.ModuleType, sources: dict[str, str], path: str, limit: int) -> dict[str, Any]:
    """Write it; `limit`: the most bytes. Gives the names that were kept and, with reasons, those that were not."""
    modules: dict[str, str] = {}
    kept_sources: dict[str, str] = {}
    values: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for name, value in list(module.__dict__.items()):
        if name.startswith("__") or name in _NOT_STATE:
            continue
        if isinstance(value, types.ModuleType):
            modules[name] = value.__name__
        elif isinstance(value, type | types.FunctionType) and value.__module__ == "__main__" and name in sources:
            kept_sources[name] = sources[name]
            if isinstance(value, types.FunctionType) and (value.__defaults__ or value.__kwdefaults__):
                values[name + _DEFAULTS] = (value.__defaults__, value.__kwdefaults__)
        else:
            values[name] = value
    ordered = [[name, source] for name, source in sources.items() if name in kept_sources]
    header = json.dumps({"modules": modules, "sources": ordered}).encode()
    body = _together(values, lost, limit - len(header) - LENGTH.size)
    with open(path, "wb") as file:
        file.write(LENGTH.pack(len(header)) + header + body)
    return {
        "kept": sorted([*modules, *kept_sources, *(name for name in values if not name.endswith(_DEFAULTS))]),
        "lost": lost,
    }


def _together(values: dict[str, Any], lost: dict[str, str], limit: int) -> bytes:
    """One pickle of all that can be; takes the others out of `values`.

    What pickling runs is the code's own (`__reduce__`, `__getstate__`), which may raise anything.
    """
    try:
        body = _pickled(values)
        if len(body) <= limit:
            return body
    except Exception:
        body = b""
    sizes: dict[str, int] = {}
    for name, value in list(values.items()):
        try:
            sizes[name] = len(_pickled({name: value}))
        except Exception as error:
            lost[name] = f"{type(value).__name__} cannot be pickled: {error}"
            del values[name]
    room = limit
    for name in sorted(sizes, key=sizes.__getitem__):
        if sizes[name] > room:
            lost[name] = f"{sizes[name]} bytes are more than the snapshot has room for"
            del values[name]
        else:
            room -= sizes[name]
    return _pickled(values)


def _pickled(value: Any) -> bytes:
    stream = io.BytesIO()
    pickle.Pickler(stream, pickle.HIGHEST_PROTOCOL).dump(value)
    return stream.getvalue()


def load(module: types.ModuleType, sources: dict[str, str], path: str) -> dict[str, Any]:
    """Into an empty session. Gives what is there again and, with reasons, what is not.

    Importing, unpickling and defining run what the code brought along, which may raise anything.
    """
    with open(path, "rb") as file:
        (length,) = LENGTH.unpack(file.read(LENGTH.size))
        header = json.loads(file.read(length))
        names: dict[str, str] = {}
        for name, real in header["modules"].items():
            try:
                module.__dict__[name] = importlib.import_module(real)
            except Exception as error:
                names[name] = f"{type(error).__name__}: {error}"
        failed = _define(module, header["sources"])
        try:
            values = pickle.load(file)
        except Exception as error:
            values = {}
            names["values"] = f"{type(error).__name__}: {error}"
    defaults = {name: values.pop(name) for name in list(values) if name.endswith(_DEFAULTS)}
    module.__dict__.update(values)
    # A default argument or a decorator may need a value.
    for name, source in failed:
        try:
            exec(source, module.__dict__)
        except Exception as error:
            names[name] = f"{type(error).__name__}: {error}"
    for name, (positional, by_keyword) in defaults.items():
        function = module.__dict__.get(name.removesuffix(_DEFAULTS))
        if isinstance(function, types.FunctionType):
            function.__defaults__, function.__kwdefaults__ = positional, by_keyword
    sources.update({name: source for name, source in header["sources"] if name not in names})
    return {"kept": sorted(name for name in module.__dict__ if not name.startswith("__")), "lost": names}


def _define(module: types.ModuleType, definitions: list[list[str]]) -> list[list[str]]:
    """Run the definitions in order; gives those that failed."""
    failed: list[list[str]] = []
    for name, source in definitions:
        try:
            exec(source, module.__dict__)
        except Exception:
            failed.append([name, source])
    return failed
