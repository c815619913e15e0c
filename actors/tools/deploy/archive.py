"""The files of an artifact as one tar archive, of which every byte follows from the manifest.

So who unpacks it parses nothing: it computes what the archive must be (a header for each file of the manifest in its
order, the bytes with that digest, zeros to a multiple of 512) and refuses whatever differs. There is no way to say a
link, a device, an absolute path or a second file of one name. Any `tar` reads it (POSIX.1-1988 ustar). It is not
compressed, so it has the size that the manifest says before anything was read.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from ....runtime.files import private_folder
from ....schemas.tool_deploy import ArtifactFile, Manifest
from .errors import ArtifactDamaged

MAX_FILES = 10_000
MAX_BYTES = 512 << 20
MAX_MANIFEST_BYTES = 8 << 20
MAX_PATH_BYTES = 240

_BLOCK = 512
_NAME_BYTES, _PREFIX_BYTES = 100, 155
_FILE_MODE, _PROGRAM_MODE = 0o444, 0o555


def encode_manifest(manifest: Manifest) -> bytes:
    return msgspec.json.encode(manifest)


def digest_of(manifest: bytes) -> str:
    """The artifact's name."""
    return hashlib.sha256(manifest).hexdigest()


def decode_manifest(text: bytes) -> Manifest:
    """A manifest that may be acted on: known format, safe paths, within the limits. Raises ArtifactDamaged."""
    if len(text) > MAX_MANIFEST_BYTES:
        raise ArtifactDamaged(f"a manifest has at most {MAX_MANIFEST_BYTES >> 20} MiB, this one {len(text)} bytes")
    try:
        manifest = msgspec.json.decode(text, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ArtifactDamaged(
            f"the manifest does not decode: {error}", hint="is it of another release of callboard?"
        ) from error
    check_manifest(manifest)
    return manifest


def check_manifest(manifest: Manifest) -> None:
    if manifest.format != 1:
        raise ArtifactDamaged(
            f"the artifact is of format {manifest.format}, and this release knows format 1",
            hint="update callboard on the node",
        )
    if len(manifest.files) > MAX_FILES:
        raise ArtifactDamaged(f"an artifact has at most {MAX_FILES} files, this one {len(manifest.files)}")
    total = sum(file.size for file in manifest.files)
    if total > MAX_BYTES:
        raise ArtifactDamaged(f"an artifact has at most {MAX_BYTES >> 20} MiB, this one {total} bytes")
    _check_paths([file.path for file in manifest.files])
    if manifest.source and not _is_safe(manifest.source):
        raise ArtifactDamaged(f"{manifest.source!r} is no folder that an artifact may name")
    paths = {file.path for file in manifest.files}
    if ":" not in manifest.entry and manifest.entry not in paths:
        raise ArtifactDamaged(f"the file {manifest.entry!r} that its tools are in is not among its files")
    for line in manifest.requirements:
        if line.startswith("./") and line[2:] not in paths:
            raise ArtifactDamaged(f"the wheel {line!r} that it requires is not among its files")
        if line.startswith("-") or any(char in line for char in "\0\r\n"):
            raise ArtifactDamaged(f"{line!r} is no requirement that an artifact may have")


def _check_paths(paths: Iterable[str]) -> None:
    """Each is safe by itself, and no two name one file on any file system, nor a file and a folder."""
    seen: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        if not _is_safe(path):
            raise ArtifactDamaged(f"{path!r} is no path that an artifact may hold")
        # Some file systems take case, and some the composition of letters, for nothing.
        folded = _folded(path)
        if folded in seen:
            raise ArtifactDamaged(f"the artifact holds {path!r} twice")
        seen.add(folded)
        folders.update(_folded(str(parent)) for parent in PurePosixPath(path).parents)
    if both := seen & folders:
        raise ArtifactDamaged(f"{min(both)!r} is a file and a folder in the artifact")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _is_safe(path: str) -> bool:
    parts = path.split("/")
    return (
        0 < len(path.encode("utf-8", "surrogatepass")) <= MAX_PATH_BYTES
        and all(part not in ("", ".", "..") for part in parts)
        and not any(part.endswith((".", " ")) for part in parts)
        and not any(char in '\\:*?"<>|' or unicodedata.category(char) in ("Cc", "Cs", "Cf") for char in path)
    )


# Packing


def pack(manifest: Manifest, contents: Iterable[bytes]) -> Iterator[bytes]:
    """The archive, in pieces. `contents` are the bytes of each file, in the manifest's order."""
    for file, content in zip(manifest.files, contents, strict=True):
        yield _header(file)
        yield content
        yield bytes(-len(content) % _BLOCK)
    yield bytes(2 * _BLOCK)


def archive_size(manifest: Manifest) -> int:
    return sum(_BLOCK + file.size + -file.size % _BLOCK for file in manifest.files) + 2 * _BLOCK


def _header(file: ArtifactFile) -> bytes:
    """A ustar header with nothing in it but name, size and mode."""
    name, prefix = _split(file.path)
    mode = _PROGRAM_MODE if file.executable else _FILE_MODE
    fields = (
        *(_text(name, _NAME_BYTES), _octal(mode, 8), _octal(0, 8), _octal(0, 8), _octal(file.size, 12)),
        *(_octal(0, 12), b" " * 8, b"0", bytes(100), b"ustar\x0000", bytes(32), bytes(32), _octal(0, 8), _octal(0, 8)),
        *(_text(prefix, _PREFIX_BYTES), bytes(12)),
    )
    header = b"".join(fields)
    checksum = b"%06o\0 " % sum(header)
    return header[:148] + checksum + header[156:]


def _split(path: str) -> tuple[bytes, bytes]:
    """Name and prefix, at a `/` that leaves both short enough."""
    data = path.encode()
    if len(data) <= _NAME_BYTES:
        return data, b""
    cut = data.find(b"/", len(data) - _NAME_BYTES - 1)
    if cut < 0 or cut > _PREFIX_BYTES:
        raise ArtifactDamaged(f"the path {path!r} is too long for an archive", hint="use shorter names of files")
    return data[cut + 1 :], data[:cut]


def _text(data: bytes, size: int) -> bytes:
    return data + bytes(size - len(data))


def _octal(number: int, size: int) -> bytes:
    text = b"%0*o\0" % (size - 1, number)
    if len(text) != size:
        raise ArtifactDamaged(f"{number} is too large for an archive")
    return text


# Unpacking


def check_archive(manifest: Manifest, archive: memoryview) -> list[memoryview]:
    """The bytes of each file, in the manifest's order, without a copy. Raises ArtifactDamaged."""
    if len(archive) != archive_size(manifest):
        raise ArtifactDamaged(f"the archive has {len(archive)} bytes, and its manifest says {archive_size(manifest)}")
    at = 0
    found: list[memoryview] = []
    for file in manifest.files:
        content = archive[at + _BLOCK : at + _BLOCK + file.size]
        end = at + _BLOCK + file.size + -file.size % _BLOCK
        if archive[at : at + _BLOCK] != _header(file):
            raise ArtifactDamaged(f"the archive does not have {file.path!r} where its manifest says")
        if hashlib.sha256(content).hexdigest() != file.digest:
            raise ArtifactDamaged(f"{file.path!r} in the archive is not the file that was signed")
        if any(archive[at + _BLOCK + file.size : end]):
            raise ArtifactDamaged(f"the archive has something hidden behind {file.path!r}")
        found.append(content)
        at = end
    if any(archive[at:]):
        raise ArtifactDamaged("the archive does not end where its manifest says")
    return found


def unpack(manifest: Manifest, archive: memoryview, target: Path) -> None:
    """Put the files at `target`, all of them or none. Nothing is written before everything was checked.

    The folder is made beside it under another name and then renamed; files and folders are read-only. Blocking. Raises
    ArtifactDamaged, and OSError where the disk does not take it.
    """
    contents = check_archive(manifest, archive)
    making = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=private_folder(target.parent)))
    try:
        for file, content in zip(manifest.files, contents, strict=True):
            path = making / file.path
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mode = _PROGRAM_MODE if file.executable else _FILE_MODE
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
        for folder, _, _ in os.walk(making, topdown=False):
            if Path(folder) != making:
                os.chmod(folder, 0o500)
        os.rename(making, target)
        os.chmod(target, 0o500)
    except BaseException:
        remove(making)
        raise


def is_intact(manifest: Manifest, folder: Path) -> bool:
    """Whether a folder holds the manifest's files, with these bytes, and nothing else. Blocking."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    wanted = {file.path: file for file in manifest.files}
    for place, folders, names in os.walk(folder):
        if any((Path(place) / name).is_symlink() for name in (*folders, *names)):
            return False
        for name in names:
            path = Path(place) / name
            file = wanted.pop(path.relative_to(folder).as_posix(), None)
            if file is None or path.stat().st_size != file.size:
                return False
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.digest:
                    return False
    return not wanted


def remove(folder: Path) -> None:
    """Remove what `unpack` made: its folders are read-only."""
    for place, folders, _ in os.walk(folder):
        for name in ("", *folders):
            path = Path(place) / name
            if not path.is_symlink():
                os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
