"""Which replica a request goes to."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from .lane import Lane
from .sequence import Sequence

# A replica with this many sequences more than the least busy one gets no more of them for the sake of its cache:
# otherwise a prompt that all requests begin with would bring all of them to one replica.
MAX_AHEAD = 4


def route(lanes: SequenceOf[Lane], sequence: Sequence, session: str = "") -> Lane:
    """The lane that knows most of the sequence's prompt, or its conversation; of equals the least busy.

    Lanes whose replica is away are taken only where all are.
    """
    if len(lanes) == 1:
        return lanes[0]
    there = [lane for lane in lanes if lane.info is not None] or list(lanes)
    least = min(lane.planner.load for lane in there)
    open_lanes = [lane for lane in there if lane.planner.load - least <= MAX_AHEAD]
    return max(
        open_lanes,
        key=lambda lane: (lane.planner.num_cached(sequence), session in lane.planner.sessions, -lane.planner.load),
    )
