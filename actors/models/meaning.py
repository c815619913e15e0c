"""The order of texts by meaning, and one order made of two."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Of reciprocal rank fusion (Cormack, Clarke, Büttcher, SIGIR 2009): how little the very first places count.
RANK_OFFSET = 60


@dataclass(frozen=True, slots=True)
class Vector:
    """A text's place in a model's space, as 32-bit floats; the text goes by its number."""

    number: int
    vector: bytes

    @classmethod
    def of(cls, number: int, values: Sequence[float]) -> Vector:
        return cls(number, array("f", values).tobytes())


def nearest(vectors: Sequence[Vector], query: Sequence[float], limit: int) -> dict[int, float]:
    """The texts whose vectors point most nearly where `query` does, with the cosine, best first.

    Vectors of another length are of another model under the same name, and are left out.
    """
    import numpy as np

    wanted = np.asarray(query, dtype=np.float32)
    fitting = [one for one in vectors if len(one.vector) == wanted.nbytes]
    norm = float(np.linalg.norm(wanted))
    if not fitting or norm == 0:
        return {}
    table = np.frombuffer(b"".join(one.vector for one in fitting), np.float32).reshape(len(fitting), -1)
    lengths = np.linalg.norm(table, axis=1)
    cosines = table @ wanted / np.maximum(lengths * norm, np.finfo(np.float32).tiny)
    best = np.argsort(-cosines, kind="stable")[:limit]
    return {fitting[place].number: float(cosines[place]) for place in best}


def fused(orders: Iterable[Iterable[int]], limit: int) -> dict[int, float]:
    """One order out of several: what stands high in any of them stands high, what stands high in all stands highest."""
    scores: dict[int, float] = {}
    for order in orders:
        for rank, number in enumerate(order):
            scores[number] = scores.get(number, 0.0) + 1 / (RANK_OFFSET + rank + 1)
    best = sorted(scores.items(), key=lambda item: -item[1])[:limit]
    return dict(best)
