"""A lane as it is shown to who looks closely: its cache as a map, and each sequence that runs or waits."""

from __future__ import annotations

import itertools
import time

from ...schemas.serve_stats import MAX_CELLS, MAX_UNDER_WAY, LaneStats, UnderWay
from .lane import Lane
from .sequence import Sequence


def lane_stats(lane: Lane) -> LaneStats:
    """Costs some ten nanoseconds a block, and a microsecond a sequence."""
    planner, now = lane.planner, time.perf_counter()
    shown = itertools.islice(itertools.chain(planner.running, planner.waiting.candidates()), MAX_UNDER_WAY)
    per_cell, cells = planner.pool.cells(MAX_CELLS)
    return LaneStats(
        address=lane.ref.address,
        info=lane.info,
        running=len(planner.running),
        waiting=len(planner.waiting),
        num_blocks=planner.pool.num_blocks,
        free_blocks=planner.pool.num_free,
        blocks_per_cell=per_cell,
        cells=cells,
        under_way=tuple(_under_way(sequence, now) for sequence in shown),
    )


def _under_way(sequence: Sequence, now: float) -> UnderWay:
    return UnderWay(
        sequence_id=sequence.sequence_id,
        running=sequence.is_running,
        prompt_tokens=sequence.num_prompt_tokens,
        generated_tokens=sequence.num_generated,
        max_tokens=sequence.max_tokens,
        cached_tokens=sequence.num_cached_tokens or 0,
        num_blocks=len(sequence.blocks),
        age_s=round(now - sequence.entered, 3),
        client=sequence.client,
        priority=sequence.priority,
        adapter=sequence.adapter,
    )
