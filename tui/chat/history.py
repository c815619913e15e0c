"""The conversations of this person, one file each in the data folder (XDG), and what was typed before.

Every window reads and writes the same files. A file is written whole or not at all, and what another window added to it
meanwhile is kept.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ...runtime.errors import CallboardError
from ...runtime.files import write_private
from ...runtime.folders import Paths
from ...runtime.messages import UNDECODABLE
from .conversation import Conversation

MOST_PROMPTS = 500


class HistoryDamaged(CallboardError):
    """A file of a conversation cannot be read or written."""

    code = "tui.history"


@dataclass
class History:
    """Blocking; the app calls it in a thread where a file may be large."""

    folder: Path

    @classmethod
    def of_this_person(cls) -> History:
        return cls(Paths.find().data / "chats")

    def _file(self, id: str) -> Path:
        return self.folder / f"{id}.json"

    def load_all(self) -> tuple[list[Conversation], list[str]]:
        """All, the last changed first, and one line for each file that cannot be read (it is left as it is)."""
        found: list[Conversation] = []
        complaints: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            for path in self.folder.iterdir():
                if path.suffix != ".json" or path.name.startswith((".", "prompts")):
                    continue
                try:
                    found.append(msgspec.json.decode(path.read_bytes(), type=Conversation))
                except (OSError, *UNDECODABLE) as error:
                    complaints.append(f"{path} cannot be read: {error}")
        return sorted(found, key=lambda one: -one.changed), complaints

    def save(self, conversation: Conversation) -> Conversation:
        """Write it, with what another window added; returns what was written. Raises HistoryDamaged."""
        path = self._file(conversation.id)
        try:
            with contextlib.suppress(FileNotFoundError, *UNDECODABLE):
                conversation = conversation.merged(msgspec.json.decode(path.read_bytes(), type=Conversation))
            write_private(path, msgspec.json.encode(conversation))
        except OSError as error:
            raise HistoryDamaged(
                f"{path} cannot be written: {error.strerror or error}", hint="make room, or mend its folder's rights"
            ) from error
        return conversation

    def delete(self, id: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._file(id).unlink()

    # What was typed before

    def prompts(self) -> list[str]:
        """Oldest first."""
        try:
            return msgspec.json.decode((self.folder / "prompts.json").read_bytes(), type=list[str])
        except (OSError, *UNDECODABLE):
            return []

    def remember(self, prompt: str) -> None:
        """The last one is kept once, however often it is given."""
        prompts = [*(old for old in self.prompts() if old != prompt), prompt][-MOST_PROMPTS:]
        try:
            write_private(self.folder / "prompts.json", msgspec.json.encode(prompts))
        except OSError as error:
            raise HistoryDamaged(f"{self.folder}/prompts.json cannot be written: {error}") from error
