"""Weights on their way into a decoder: each is checked, and parts of a fused product wait for the last of them.

A quantized matrix cannot be copied into rows of another one as numbers can: how a product is kept is decided when all
its parts are there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from ...runtime.errors import ModelDamaged
from .matrices import Weight

if TYPE_CHECKING:
    from .llama import LlamaDecoder


class Product(NamedTuple):
    """A product of a layer, and its parts from the first rows to the last; no parts: some are still to come."""

    layer: int
    name: str
    parts: tuple[tuple[slice, Weight], ...]


class FusedProducts:
    """`shapes` says which tensors there are and where they go; its own weights are not touched."""

    def __init__(self, shapes: LlamaDecoder) -> None:
        self._shapes = shapes
        self._waiting: dict[tuple[int, str], list[tuple[slice, Weight]]] = {}

    def checked(self, weights: Iterable[tuple[str, Weight]]) -> Iterator[tuple[str, Weight]]:
        """The same, up to the first that is unknown, of another shape or not finite, and then whether all have come.

        Raises ModelDamaged. Scales of quantized matrices were looked at when they were read.
        """
        missing = set(self._shapes.canonical_names())
        for name, weight in weights:
            if name not in missing:
                raise ModelDamaged(f"tensor '{name}' has no place in this decoder, or came twice")
            expected = self._shapes.target(name).shape
            if tuple(expected) != tuple(weight.shape):
                raise ModelDamaged(f"tensor '{name}' has the shape {tuple(weight.shape)}; {tuple(expected)} is needed")
            # One pass without a mask: any NaN or infinity makes the sum one.
            if isinstance(weight, torch.Tensor) and not bool(weight.sum(dtype=torch.float32).isfinite()):
                raise ModelDamaged(f"tensor '{name}' holds values that are not finite")
            missing.discard(name)
            yield name, weight
        if missing:
            raise ModelDamaged(f"{len(missing)} tensors are missing, among them '{min(missing)}'")

    def add(self, name: str, weight: Weight) -> Product | None:
        """The product that this is a matrix of, with all its parts if this was the last; None for other tensors."""
        found = self._shapes.product_of(name)
        if found is None:
            return None
        layer, product, rows, num_parts = found
        parts = self._waiting.setdefault((layer, product), [])
        parts.append((rows, weight))
        if len(parts) < num_parts:
            return Product(layer, product, ())
        del self._waiting[layer, product]
        return Product(layer, product, tuple(sorted(parts, key=lambda part: part[0].start)))
