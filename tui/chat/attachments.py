"""Files that go with a question. What the engine takes is text, so that is what a file must be."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import UsageError
from .conversation import LARGEST_ATTACHMENT, Attachment


class CannotAttach(UsageError):
    """A file that is not there, is too large, or is no text."""

    code = "tui.attach"


_PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".svgz"}


def read_attachment(place: str) -> Attachment:
    """Blocking. Raises CannotAttach, which says why."""
    path = Path(place.strip().strip("'\"")).expanduser()
    try:
        if not path.is_file():
            raise CannotAttach(f"{path} is no file" if path.exists() else f"there is no file {path}")
        if path.suffix.lower() in _PICTURES:
            raise CannotAttach(
                f"{path.name} is a picture, and the models that are served here take text",
                hint="the tools `describe_image` and `ocr` say what is in it (page Tools)",
            )
        if (size := path.stat().st_size) > LARGEST_ATTACHMENT:
            raise CannotAttach(
                f"{path.name} has {size:,} bytes; {LARGEST_ATTACHMENT:,} is the most", hint="attach a part of it"
            )
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise CannotAttach(f"{path.name} is no text (UTF-8)", hint="attach its text") from error
    except OSError as error:
        raise CannotAttach(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise CannotAttach(f"{path.name} is no text: it has zero bytes", hint="attach its text")
    return Attachment(path.name, text)


def path_completions(start: str, most: int = 20) -> list[str]:
    """Paths that begin so, folders with a slash."""
    path = Path(start).expanduser()
    folder, name = (path, "") if start.endswith("/") or not start else (path.parent, path.name)
    try:
        found = sorted(
            entry for entry in folder.iterdir() if entry.name.startswith(name) and (name or entry.name[0] != ".")
        )
    except OSError:
        return []
    return [f"{entry}/" if entry.is_dir() else str(entry) for entry in found[:most]]
