"""`agent.memory`: what agents keep beyond one run, by message, shared by all who name the same session."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
import anyio.to_thread
import msgspec

from ....runtime.actor import Actor, handler
from ....runtime.errors import CallboardError, MissingExtra, RequestInvalid
from ....runtime.folders import Paths
from ....runtime.log import log
from ....schemas.agent import Forget, Forgotten, Memories, Recall, Remember, Remembered
from ....schemas.serve import Embed
from ...models.meaning import Vector, fused, nearest
from .errors import MemoryFailed, NoteTooLarge
from .notes import Notes

T = TypeVar("T")

# Of how many notes from each order the best are chosen.
CANDIDATES = 64
MAX_LIMIT = 1000
# Texts for one request to the embedder.
EMBED_BATCH = 32


class MemoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`path`: the file, "" for `memory/<address>.db` in the data folder. `max_note_bytes`: of one text.

    `embedder`: the actor that answers `Embed`, an engine say; notes are then found by their meaning too. `embed_model`:
    the name that goes into `Embed` and beside each vector; with another one, notes are embedded anew.
    """

    path: str = ""
    max_note_bytes: Annotated[int, msgspec.Meta(ge=1)] = 64 << 10
    embedder: str = ""
    embed_model: str = ""
    embed_timeout_s: Annotated[float, msgspec.Meta(gt=0)] = 60.0


class Memory(Actor[MemoryConfig]):
    """Answers `Remember`, `Recall`, `Forget`. What it acknowledged is on the disk.

    Notes are there to be found by their words at once; by their meaning when the embedder has seen them, which happens
    beside and, where it fails, again with the next note or question. A question that cannot be embedded now is answered
    by words alone, and the log says so.
    """

    async def started(self) -> None:
        if self.config.embedder and importlib.util.find_spec("numpy") is None:
            raise MissingExtra.of("serve", "finding notes by their meaning")
        self._notes = await anyio.to_thread.run_sync(Notes, self._place())
        self._turn = anyio.Lock()
        self._waiting: list[tuple[Remember, asyncio.Future[Remembered]]] = []
        self._unembedded = anyio.Event()
        if self.config.embedder:
            self.start_soon(self._embed_notes)

    def _place(self) -> Path:
        path = self.config.path
        return Path(path).expanduser() if path else Paths.find().data / "memory" / f"{self.address}.db"

    async def stopped(self) -> None:
        notes = getattr(self, "_notes", None)
        if notes is not None:
            await anyio.to_thread.run_sync(notes.close)

    @handler(concurrent=True)
    async def remember(self, message: Remember) -> Remembered:
        try:
            size = len(message.text.encode())
        except UnicodeEncodeError as error:
            raise MemoryFailed(f"a note that is no valid Unicode: {error.reason}") from error
        if size > self.config.max_note_bytes:
            raise NoteTooLarge(f"a note of {size:,} bytes; at most {self.config.max_note_bytes:,} are kept")
        if not message.text.strip():
            raise NoteTooLarge("a note without text", hint="there is nothing to remember")
        answer: asyncio.Future[Remembered] = asyncio.get_running_loop().create_future()
        self._waiting.append((message, answer))
        if len(self._waiting) == 1:
            # The first of those who wait writes for all who come while it waits for its turn: one sync for many.
            self.start_soon(self._write)
        return await answer

    async def _write(self) -> None:
        async with self._turn:
            batch, self._waiting = self._waiting, []
            wanted = [message for message, _ in batch]
            try:
                kept = await anyio.to_thread.run_sync(self._notes.remember, wanted)
            except CallboardError as error:
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(type(error)(str(error), hint=error.hint))
                return
        for (_, answer), one in zip(batch, kept, strict=True):
            if not answer.done():
                answer.set_result(one)
        self._unembedded.set()

    @handler(concurrent=True)
    async def recall(self, message: Recall) -> Memories:
        limit = max(0, min(message.limit, MAX_LIMIT))
        session = message.session
        if not message.query.strip():
            return Memories(tuple(await self._with_notes(lambda notes: notes.latest(session, limit))))
        scores = await self._with_notes(lambda notes: notes.by_words(message.query, session, max(limit, CANDIDATES)))
        if self.config.embedder:
            scores = fused((scores, await self._by_meaning(message.query, session)), limit)
        best = dict(list(scores.items())[:limit])
        return Memories(tuple(await self._with_notes(lambda notes: notes.entries(best))))

    @handler(concurrent=True)
    async def forget(self, message: Forget) -> Forgotten:
        return Forgotten(await self._with_notes(lambda notes: notes.forget(message.session, message.ids)))

    async def _with_notes(self, work: Callable[[Notes], T]) -> T:
        """One at a time, in a thread. A caller that goes away does not end what has begun."""
        async with self._turn:
            return await anyio.to_thread.run_sync(work, self._notes)

    # Meaning

    async def _by_meaning(self, query: str, session: str) -> dict[int, float]:
        self._unembedded.set()
        try:
            (wanted,) = await self._embedded([query])
        except CallboardError as error:
            log.warning("%s: by words alone, since the question cannot be embedded: %s", self.address, error)
            return {}
        vectors = await self._with_notes(lambda notes: notes.vectors(self.config.embed_model, session))
        return await anyio.to_thread.run_sync(nearest, vectors, wanted, CANDIDATES)

    async def _embedded(self, texts: list[str]) -> tuple[tuple[float, ...], ...]:
        config = self.config
        request = Embed(texts=tuple(texts), model=config.embed_model, client=self.address)
        answer = await self.actor(config.embedder).ask(request, config.embed_timeout_s)
        if len(answer.vectors) != len(texts):
            raise MemoryFailed(f"'{config.embedder}' gave {len(answer.vectors)} vectors for {len(texts)} texts")
        return answer.vectors

    async def _embed_notes(self) -> None:
        """Beside everything else: give a vector to each note that has none, those of an earlier life too."""
        model = self.config.embed_model
        while True:
            self._unembedded = anyio.Event()
            rows = await self._with_notes(lambda notes: notes.without_vector(model, EMBED_BATCH))
            if not rows:
                await self._unembedded.wait()
                continue
            try:
                made = await self._vectors(rows)
            except CallboardError as error:
                log.warning("%s: notes wait to be embedded: %s", self.address, error)
                await self._unembedded.wait()
                continue
            await self._with_notes(lambda notes, made=made: notes.put_vectors(model, made))

    async def _vectors(self, rows: list[tuple[int, str]]) -> list[Vector]:
        """A text that the embedder can never take (it is too long, say) gets a vector that is near to nothing, so that
        it does not stand in the others' way."""
        try:
            found = await self._embedded([text for _, text in rows])
        except RequestInvalid as error:
            if len(rows) > 1:
                return [vector for row in rows for vector in await self._vectors([row])]
            log.warning("%s: a note is found by its words alone: %s", self.address, error)
            return [Vector(rows[0][0], b"")]
        return [Vector.of(number, values) for (number, _), values in zip(rows, found, strict=True)]
