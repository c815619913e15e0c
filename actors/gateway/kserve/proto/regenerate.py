"""Writes the `_pb2` modules from the `.proto` files beside them: `make proto`. It needs grpcio-tools, of any version.

A module holds the description of its file, from which the messages are made when it is imported; its stub tells
editors and type checkers what they are.
"""

from __future__ import annotations

import sys
import tempfile
import textwrap
from collections.abc import Iterator
from importlib import import_module, resources
from pathlib import Path

HERE = Path(__file__).parent
FILES = ("health", "inference", "reflection")

_MODULE = '''"""Generated from {name}.proto by `make proto`. Change that file, not this one."""

from .pool import load, names_of

DESCRIPTOR = load(
{literal}
)
globals().update(names_of(DESCRIPTOR))
'''


def generated() -> Iterator[tuple[str, str]]:
    """Names of files and what is to be in them. Raises ImportError without grpcio-tools."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet

    protoc = import_module("grpc_tools.protoc")
    well_known = str(resources.files("grpc_tools") / "_proto")
    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            described = Path(folder) / f"{name}.bin"
            options = (f"-I{HERE}", f"-I{well_known}", f"--pyi_out={folder}", f"--descriptor_set_out={described}")
            code = protoc.main(["protoc", *options, f"{name}.proto"])
            if code:
                raise RuntimeError(f"protoc refuses {name}.proto")
            (file,) = FileDescriptorSet.FromString(described.read_bytes()).file
            yield (
                f"{name}_pb2.py",
                _MODULE.format(name=name, literal=_literal(file.SerializeToString(deterministic=True))),
            )
            yield f"{name}_pb2.pyi", (Path(folder) / f"{name}_pb2.pyi").read_text()


def _literal(data: bytes) -> str:
    pieces = [data[start : start + 30] for start in range(0, len(data), 30)]
    return textwrap.indent("\n".join(map(repr, pieces)), "    ")


def main() -> int:
    try:
        files = list(generated())
    except ImportError as error:
        print(f"{error}: pip install grpcio-tools", file=sys.stderr)
        return 1
    for name, text in files:
        (HERE / name).write_text(text)
        print(HERE / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
