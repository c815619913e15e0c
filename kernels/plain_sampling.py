"""Drawing tokens in plain torch, on a CPU above all, without ever sorting a vocabulary.

Rows with a small `top_k` are drawn among their candidates. For the others one pass gives each token its weight, the
`top_p` cut is found by weighing buckets of nearly equal weights, and the draw looks into sums of blocks first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

# Up to this many of the likeliest are picked out; above that a pass over the whole vocabulary costs no more.
MAX_CANDIDATES = 256
# A few more than were asked for: equals of the last one stay, too.
SPARE_CANDIDATES = 8
BLOCK = 256
# Sorting more than this takes longer than weighing buckets; of so many rows buckets exist at once.
MAX_SORTED = 2048
ROWS_AT_ONCE = 32
# The upper bits of a float32 in [0, 1] as an integer: buckets whose weights differ by less than 2**-6.
BUCKET_SHIFT = 17
NUM_BUCKETS = (0x3F800000 >> BUCKET_SHIFT) + 1

Way = Callable[..., torch.Tensor]


def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """See `ops.sample`."""
    rows = logits if logits.dtype == torch.float64 else logits.float()
    columns = [
        column[:, None]
        for column in (temperature.to(rows.dtype), top_k, top_p.double(), min_p.to(rows.dtype), uniform.double())
    ]
    tokens = torch.full((len(rows),), -1, device=rows.device)

    def draw(way: Way, which: torch.Tensor) -> None:
        if bool(which.all()):
            tokens.copy_(way(rows, *columns))
        elif bool(which.any()):
            tokens[which] = way(rows[which], *(column[which] for column in columns))

    is_greedy = (temperature == 0) | ~rows.amax(-1).isfinite()
    draw(lambda rows, *_: greedy(rows), is_greedy)
    if rows.shape[1] > MAX_CANDIDATES + SPARE_CANDIDATES:
        draw(_among_candidates, ~is_greedy & (top_k > 0) & (top_k <= MAX_CANDIDATES))
    draw(_among_all, ~is_greedy & (tokens < 0))
    return tokens


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """See `ops.greedy`. On a CPU numpy looks for the largest some fifteen times as fast as torch."""
    has_numpy = logits.device.type == "cpu" and logits.dtype in (torch.float32, torch.float64)
    tokens = torch.from_numpy(logits.numpy().argmax(-1)) if has_numpy else logits.argmax(-1)
    return tokens.where(logits.gather(1, tokens[:, None])[:, 0].isfinite(), -1)


def _among_candidates(
    logits: torch.Tensor,  # [num_rows, vocab]; all others [num_rows, 1]
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """A token [num_rows] from the likeliest; -1 where equals of the last one may be more than were picked out."""
    largest, ids = logits.topk(int(top_k.max()) + SPARE_CANDIDATES)
    weights = ((largest - largest[:, :1]) / temperature).exp()
    kth = weights.gather(1, top_k - 1)
    is_open = weights[:, -1:] >= kth
    weights = weights.where(weights >= kth, 0)
    reached = weights.cumsum(-1, dtype=torch.float64)
    needed = (reached < top_p * reached[:, -1:]).sum(-1, keepdim=True).clamp(max=weights.shape[1] - 1)
    weights = weights.where((weights >= weights.gather(1, needed)) | (top_p >= 1), 0)
    weights = weights.where(weights >= min_p, 0)
    ids, order = ids.sort(-1)
    reached = weights.gather(1, order).cumsum(-1, dtype=torch.float64)
    return ids.gather(1, _pick(reached, uniform * reached[:, -1:])).where(~is_open, -1)[:, 0]


def _among_all(
    logits: torch.Tensor,  # [num_rows, vocab]; all others [num_rows, 1]
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    vocab_size = logits.shape[1]
    weights = (logits - logits.amax(-1, keepdim=True)).div_(temperature).exp_()
    if bool((top_k > 0).any()):
        wanted = top_k.where(top_k > 0, vocab_size).clamp(max=vocab_size)
        largest = weights.topk(int(wanted[top_k > 0].max())).values
        kth = largest.gather(1, wanted.clamp(max=largest.shape[1]) - 1)
        weights.masked_fill_(weights < kth.where(top_k > 0, 0), 0)
    if bool((top_p < 1).any()):
        weights.masked_fill_(weights < _top_p_cut(weights, top_p).where(top_p < 1, 0), 0)
    if bool((min_p > 0).any()):
        weights.masked_fill_(weights < min_p, 0)
    if vocab_size <= BLOCK:
        reached = weights.cumsum(-1, dtype=torch.float64)
        return _pick(reached, uniform * reached[:, -1:])[:, 0]
    # Sums of blocks say in which block the token lies: a cumulative sum of all weights takes ten times as long.
    blocks = F.pad(weights, (0, -vocab_size % BLOCK)).unflatten(-1, (-1, BLOCK))
    reached = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    target = uniform * reached[:, -1:]
    block = _pick(reached, target)
    before = F.pad(reached, (1, 0)).gather(1, block)
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].cumsum(-1, dtype=torch.float64)
    return (block * BLOCK + _pick(inside, target - before))[:, 0]


def _pick(reached: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The place [num_rows, 1] at which a cumulative sum [num_rows, n] goes past `target` [num_rows, 1]."""
    chosen = torch.searchsorted(reached, target.contiguous(), right=True)
    # Rounding may leave the target just past the last weight: the last one that has any is then meant.
    last = torch.searchsorted(reached, reached[:, -1:].contiguous())
    return torch.minimum(chosen, last)


def _top_p_cut(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The smallest weight [num_rows, 1] among the fewest that hold `top_p` [num_rows, 1] of each row's sum."""
    if weights.shape[1] <= MAX_SORTED:
        ordered = weights.sort(descending=True).values
        reached = ordered.cumsum(-1, dtype=torch.float64)
        needed = (reached < top_p * reached[:, -1:]).sum(-1, keepdim=True)
        return ordered.gather(1, needed.clamp(max=weights.shape[1] - 1))
    pieces = zip(weights.split(ROWS_AT_ONCE), top_p.split(ROWS_AT_ONCE), strict=True)
    return torch.cat([_top_p_cut_by_buckets(*piece) for piece in pieces])


def _top_p_cut_by_buckets(weights: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The cut lies in the bucket in which the sum from the top reaches its goal; only what is in there is sorted."""
    num_rows = len(weights)
    bucket = weights.float().view(torch.int32) >> BUCKET_SHIFT
    place = bucket + NUM_BUCKETS * torch.arange(num_rows, dtype=torch.int32, device=weights.device)[:, None]
    sums = torch.bincount(place.flatten(), weights.flatten().double(), num_rows * NUM_BUCKETS)
    reached = sums.view(num_rows, NUM_BUCKETS).flip(-1).cumsum(-1)
    goal = top_p * reached[:, -1:]
    at = torch.searchsorted(reached, goal).clamp(max=NUM_BUCKETS - 1)
    before = F.pad(reached, (1, 0)).gather(1, at)
    cut = torch.zeros_like(weights[:, :1])
    cut_bucket = (NUM_BUCKETS - 1 - at[:, 0]).tolist()
    for row in (top_p[:, 0] < 1).nonzero().flatten().tolist():
        inside = weights[row][bucket[row] == cut_bucket[row]].sort(descending=True).values
        needed = int((before[row] + inside.cumsum(0, dtype=torch.float64) < goal[row]).sum())
        if len(inside):
            cut[row] = inside[min(needed, len(inside) - 1)]
    return cut
