"""What a sandbox may read and run: this interpreter, its libraries, and the system's programs. Never a person's files.

Found out by the process that forks sandboxes, from itself, so it is what that process has loaded.
"""

from __future__ import annotations

import os
import sys
import sysconfig

# Programs and libraries of the system. /usr may hold all of it, with links from the root.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/cuda", "/nix/store", "/gnu/store")
# Of /etc only what programs need to start, and that says nothing of this machine's people or secrets.
_ETC = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/fonts",
    "/etc/mime.types",
    "/etc/ssl/openssl.cnf",
)
_PACKAGE_FOLDERS = ("site-packages", "dist-packages")


def folders() -> list[str]:
    """What is mounted read-only, each path as the interpreter names it."""
    found = {path for path in (*_SYSTEM, *_ETC) if os.path.exists(path) and not _is_root_link(path)}
    wanted = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    # Folders that a developer put on the path hold sources, and what lies beside them; those stay outside.
    wanted += [path for path in sys.path if os.path.basename(path) in _PACKAGE_FOLDERS]
    if libraries := sysconfig.get_config_var("LIBDIR"):
        wanted += _shared_libraries(libraries)
    for path in wanted:
        for one in {path, os.path.realpath(path)}:
            if os.path.isdir(one) or os.path.isfile(one):
                found.add(one)
    for path in _programs():
        found.add(path)
    return _without_nested(found)


def _shared_libraries(folder: str) -> list[str]:
    """libpython, which lies beside the standard library and is not part of it."""
    name = sysconfig.get_config_var("INSTSONAME")
    return [os.path.join(folder, name)] if name and ".so" in name else []


def _programs() -> list[str]:
    """The interpreter by each of its names, so that code may start another of it."""
    found = []
    configuration = os.path.join(sys.prefix, "pyvenv.cfg")
    if os.path.isfile(configuration):
        found.append(configuration)
    path = sys.executable
    while path and os.path.lexists(path):
        found.append(path)
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return [os.path.realpath(path) if os.path.islink(path) else path for path in found]


def links() -> list[tuple[str, str]]:
    """The root's symbolic links into /usr, and the interpreter's own, with where they lead."""
    found = [(path, os.readlink(path)) for path in _SYSTEM if _is_root_link(path)]
    path = sys.executable
    while path and os.path.islink(path):
        found.append((path, os.readlink(path)))
        path = os.path.join(os.path.dirname(path), os.readlink(path))
    return found


def _is_root_link(path: str) -> bool:
    return os.path.islink(path)


def _without_nested(paths: set[str]) -> list[str]:
    """Those that no other one holds already."""
    kept: list[str] = []
    for path in sorted(os.path.normpath(path) for path in paths):
        if not any(path == one or path.startswith(one + "/") for one in kept):
            kept.append(path)
    return kept
