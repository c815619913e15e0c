"""Sharding takes models as they come: parts in other types, frozen parts, weights that the loss reaches for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from odd_models import Kind, trained_alone, trained_together

if TYPE_CHECKING:
    from rank_processes import Ranks


@pytest.mark.parametrize(
    "kind",
    [
        Kind(four_bits=True),
        Kind(wide_head=True),
        Kind(outside=True),
        Kind(recomputed=True),
        Kind(partly_frozen=True),
    ],
    ids=["four_bits", "wide_head", "outside", "recomputed", "partly_frozen"],
)
def test_every_stage_trains_it_alike(ranks: Ranks, kind: Kind) -> None:
    losses, memory, types = trained_alone(kind)
    assert losses[-1] < losses[0]
    for zero in (1, 2, 3):
        spread_losses, spread_memory, spread_types = ranks.run(trained_together, kind, zero)[0]
        assert spread_losses == pytest.approx(losses, abs=2e-2 if kind.wide_head else 1e-5)
        assert spread_types == types
        if zero == 3:
            assert spread_memory.total <= 0.55 * memory.total
    if kind.wide_head:
        assert types == {torch.float32}
