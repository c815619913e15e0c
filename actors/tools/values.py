"""Images, sounds and files as a tool sees them: bytes with a kind, a MIME type and a name, wherever they lie.

In JSON each of them is the string of its name; the bytes travel beside it as a blob. Reading is lazy: `.path` writes a
file only when somebody asks for it, and PIL, numpy are imported only by the methods that give their objects.
"""

from __future__ import annotations

import io
import mimetypes
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ...schemas.tool import MediaKind
from .errors import ToolError
from .wave_bytes import read_wave, wave_rate, write_wave

if TYPE_CHECKING:
    import numpy
    import PIL.Image

F = TypeVar("F", bound="File")

_ANY_MIME = "application/octet-stream"
# What a file begins with, for bytes that come without a type.
_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
)


def sniffed_mime(head: bytes) -> str:
    """The MIME type that the first bytes of a file give away, or "" where they do not."""
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12], "")
    return next((mime for signature, mime in _SIGNATURES if head.startswith(signature)), "")


def kind_of(mime: str) -> MediaKind:
    family = mime.partition("/")[0]
    return MediaKind(family) if family in ("image", "audio") else MediaKind.FILE


class File:
    """Bytes with a name and a MIME type. Immutable; made by `from_bytes` or `from_path`.

    What a tool is given lives as long as the call. `folder` is where `.path` puts the file; without one it is a
    temporary folder that goes with this object.
    """

    kind: ClassVar[MediaKind] = MediaKind.FILE

    def __init__(
        self,
        *,
        data: bytes | memoryview | None = None,
        path: Path | None = None,
        mime: str = "",
        name: str = "",
        folder: Path | None = None,
    ) -> None:
        if (data is None) == (path is None):
            raise TypeError(f"{type(self).__name__} is made of data or of a path: use from_bytes or from_path")
        self._data = data
        self._path = path
        self._folder = folder
        self.name = name or (path.name if path is not None else "")
        guessed = mimetypes.guess_type(self.name)[0] if self.name else None
        self.mime = mime or sniffed_mime(self._head()) or guessed or _ANY_MIME

    @classmethod
    def from_bytes(cls: type[F], data: bytes | bytearray | memoryview, mime: str = "", name: str = "") -> F:
        """`mime` is guessed from the first bytes and the name where it is not given."""
        return cls(data=data if isinstance(data, memoryview) else bytes(data), mime=mime, name=name)

    @classmethod
    def from_path(cls: type[F], path: str | os.PathLike[str], mime: str = "", name: str = "") -> F:
        """A file that stays where it is, and is read when its bytes are needed. Raises ToolError if it is not there."""
        found = Path(path)
        if not found.is_file():
            raise ToolError(f"there is no file {found}")
        return cls(path=found, mime=mime, name=name)

    def _head(self) -> bytes:
        if self._data is not None:
            return bytes(self._data[:16])
        with open(self.path, "rb") as file:
            return file.read(16)

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self._data) if self._data is not None else self.path.stat().st_size

    @property
    def path(self) -> Path:
        """A file with these bytes. It is written on first use, under a name whose ending fits the MIME type."""
        if self._path is None:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="callboard-media-"))
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._path = _unused(self._folder, self.file_name)
            self._path.write_bytes(self.view)
        return self._path

    @property
    def file_name(self) -> str:
        """`name` as a bare file name with an ending, safe to use in a folder."""
        bare = Path(self.name.replace("\0", "")).name or self.kind.value
        return bare if Path(bare).suffix else bare + (mimetypes.guess_extension(self.mime) or "")

    @property
    def view(self) -> memoryview:
        """All the bytes, without a copy where they are in memory."""
        return memoryview(self._data if self._data is not None else self.path.read_bytes())

    def bytes(self) -> bytes:
        if isinstance(self._data, bytes):
            return self._data
        return bytes(self._data) if self._data is not None else self.path.read_bytes()

    def text(self, encoding: str = "utf-8") -> str:
        """The bytes as text. Raises ToolError where they are none."""
        try:
            return str(self.view, encoding)
        except UnicodeDecodeError as error:
            raise ToolError(f"the file {self.name or '(unnamed)'} is no {encoding} text: {error}") from error

    def as_kind(self, cls: type[F]) -> F:
        """The same bytes as another kind of medium."""
        return cls(
            data=self._data,
            path=self._path if self._data is None else None,
            mime=self.mime,
            name=self.name,
            folder=self._folder,
        )

    @property
    def is_on_disk(self) -> bool:
        """Whether its bytes are yet to be read."""
        return self._data is None

    def sorted_out(self) -> File:
        """The same as what its MIME type says it is: `Image`, `Audio`, or a plain `File`."""
        return self.as_kind(BY_KIND[kind_of(self.mime)])

    def kept(self: F) -> F:
        """The same with its bytes in memory, so that it outlives whatever file or mapping they are in."""
        return type(self)(data=self.bytes(), mime=self.mime, name=self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.mime!r}, {self.size} bytes)"


class Image(File):
    """A picture. What is drawn is decoded only by `pil` and `array`."""

    kind = MediaKind.IMAGE

    def pil(self) -> PIL.Image.Image:
        """Decoded, as a PIL image. Raises ToolError where the bytes are no image."""
        import PIL.Image

        try:
            image = PIL.Image.open(io.BytesIO(self.view))
            image.load()
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise ToolError(f"the image {self.name or '(unnamed)'} cannot be read: {error}") from error
        return image

    def array(self) -> numpy.ndarray[Any, Any]:
        """Decoded to RGB: uint8, [height, width, 3]."""
        import numpy

        return numpy.asarray(self.pil().convert("RGB"))

    @classmethod
    def from_pil(cls, image: PIL.Image.Image, format: str = "PNG", name: str = "") -> Image:
        target = io.BytesIO()
        image.save(target, format=format)
        return cls(data=target.getvalue(), mime=f"image/{format.lower()}", name=name)

    @classmethod
    def from_array(cls, pixels: numpy.ndarray[Any, Any], format: str = "PNG", name: str = "") -> Image:
        """uint8 values, [height, width] or [height, width, 3 or 4]."""
        import PIL.Image

        return cls.from_pil(PIL.Image.fromarray(pixels), format, name)


class Audio(File):
    """A sound. `array` and `rate` read WAV; a tool that takes other formats decodes `path` itself."""

    kind = MediaKind.AUDIO

    @property
    def rate(self) -> int:
        """Frames a second. Raises ToolError where the bytes are no WAV file."""
        return wave_rate(self.view)

    def array(self) -> numpy.ndarray[Any, Any]:
        """float32 within [-1, 1]: [num_frames] of one channel, [num_frames, num_channels] of more."""
        return read_wave(self.view)

    @classmethod
    def from_wav_bytes(cls, data: bytes, name: str = "") -> Audio:
        return cls(data=bytes(data), mime="audio/wav", name=name)

    @classmethod
    def from_array(cls, samples: numpy.ndarray[Any, Any], rate: int, name: str = "") -> Audio:
        """Floats within [-1, 1] or int16, [num_frames] or [num_frames, num_channels], as a 16-bit WAV file."""
        return cls.from_wav_bytes(write_wave(samples, rate), name)


BY_KIND: dict[MediaKind, type[File]] = {MediaKind.IMAGE: Image, MediaKind.AUDIO: Audio, MediaKind.FILE: File}


def _unused(folder: Path, name: str) -> Path:
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return path
