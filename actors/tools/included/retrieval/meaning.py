"""Passages by their meaning: an engine gives each a vector, and a question one too."""

from __future__ import annotations

from dataclasses import dataclass

from .....runtime.errors import RequestInvalid
from .....runtime.log import log
from .....schemas.serve import Embed
from ....models.meaning import Vector, fused, nearest
from ...context import ToolContext
from ..files.walking import Deadline
from ..optional import need
from .index import Index

# Texts for one request to the engine: it computes in one turn what a caller may have to wait for.
BATCH = 16
# Of how many passages from each order the best are chosen.
CANDIDATES = 64
TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Embedder:
    """`engine`: the actor that gives vectors. `model`: of its adapters or itself; with another, all are made anew."""

    engine: str
    model: str = ""

    def embed_passages(self, index: Index, context: ToolContext, deadline: Deadline) -> bool:
        """Give vectors to passages that have none. Whether all have one now. Raises what the engine does."""
        while rows := index.without_vector(self.model, BATCH):
            if deadline.over:
                return False
            index.put_vectors(self.model, self._vectors(rows, context))
        return True

    def search(self, index: Index, context: ToolContext, query: str, limit: int, under: str) -> dict[int, float]:
        """Passages by number: those that fit by words and those that fit by meaning, as one order."""
        need("numpy", "tools", "finding documents by their meaning")
        by_words = index.by_words(query, max(limit, CANDIDATES), under)
        (wanted,) = self._ask((query,), context)
        by_meaning = nearest(index.vectors(self.model, under), wanted, CANDIDATES)
        return fused((by_words, by_meaning), limit)

    def _vectors(self, rows: list[tuple[int, str]], context: ToolContext) -> list[Vector]:
        """A text that the engine can never take (it is too long, say) gets a vector that is near to nothing."""
        try:
            found = self._ask(tuple(text for _, text in rows), context)
        except RequestInvalid as error:
            if len(rows) > 1:
                return [vector for row in rows for vector in self._vectors([row], context)]
            log.warning("a passage is found by its words alone: %s", error)
            return [Vector(rows[0][0], b"")]
        return [Vector.of(number, values) for (number, _), values in zip(rows, found, strict=True)]

    def _ask(self, texts: tuple[str, ...], context: ToolContext) -> tuple[tuple[float, ...], ...]:
        return context.ask(self.engine, Embed(texts=texts, model=self.model, client="documents"), TIMEOUT_S).vectors
