"""Decoding steps recorded and replayed, against the same steps computed one by one without padding.

Under the interpreter nothing is recorded: what is tested there are the padded inputs.
"""

from __future__ import annotations

import torch

from callboard.kernels import ops, reference
from callboard.kernels.gpu import graphs, launch
from callboard.kernels.gpu.graphs import Compute, DecodeGraphs
from callboard.kernels.ragged import RaggedBatch

NUM_BLOCKS, BLOCK_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, VOCAB = 40, 16, 4, 2, 64, 50


class Layer:
    """As much of a decoder as touches everything that a graph fixes: embedding, cache, attention, norm."""

    def __init__(self, device: torch.device) -> None:
        shape = (NUM_BLOCKS + graphs.num_spare_blocks(BLOCK_SIZE), BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
        self.embedding = torch.randn(VOCAB, (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM, device=device)
        self.weight = torch.rand(NUM_HEADS * HEAD_DIM, device=device) + 0.5
        self.k_cache, self.v_cache = torch.randn(2, *shape, device=device)

    def __call__(self, token_ids: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        heads = self.embedding[token_ids].unflatten(-1, (-1, HEAD_DIM))
        q, k, v = heads.split([NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1)
        ops.write_kv(k, v, self.k_cache, self.v_cache, batch.slots)
        attended = ops.paged_attention(q.contiguous(), self.k_cache, self.v_cache, batch, HEAD_DIM**-0.5)
        return ops.rms_norm(attended.flatten(1), self.weight, 1e-6)

    def expected(self, token_ids: torch.Tensor, batch: RaggedBatch) -> torch.Tensor:
        """In float64, with the cache as it is after the step."""
        q = self.embedding[token_ids].unflatten(-1, (-1, HEAD_DIM))[:, :NUM_HEADS].double()
        caches = self.k_cache.double(), self.v_cache.double()
        attended = reference.paged_attention(q, *caches, batch, HEAD_DIM**-0.5)
        return reference.rms_norm(attended.flatten(1), self.weight.double(), 1e-6)


def as_it_is(compute: Compute) -> Compute:
    return compute


@torch.inference_mode()
def test_a_replay_computes_the_step_it_is_given(device: torch.device) -> None:
    assert launch.interpreted() or not graphs.unavailable(device)
    layer = Layer(device)
    recorded = DecodeGraphs(layer, BLOCK_SIZE, NUM_BLOCKS, as_it_is if launch.interpreted() else None)
    # As sequences come and go: fewer than before in the same graph, too, and lengths at the borders of blocks.
    for num_seqs in (1, 3, 4, 3, 8, 5, 11):
        seq_lens = [int(n) for n in torch.randint(1, 3 * BLOCK_SIZE, (num_seqs,))]
        seq_lens[0] = (1, BLOCK_SIZE, BLOCK_SIZE + 1)[num_seqs % 3]
        tables = torch.randperm(NUM_BLOCKS)[: 3 * num_seqs].view(num_seqs, 3).tolist()
        batch = RaggedBatch.build(seq_lens, [1] * num_seqs, tables, BLOCK_SIZE, device)
        assert DecodeGraphs.takes(batch)
        token_ids = torch.randint(VOCAB, (num_seqs,), device=device)
        untouched = torch.ones(NUM_BLOCKS * BLOCK_SIZE, dtype=torch.bool, device=device)
        untouched[batch.slots] = False
        before = layer.k_cache.clone()
        hidden = recorded.run(token_ids, batch)
        assert hidden.shape == (num_seqs, NUM_HEADS * HEAD_DIM)
        # float32 throughout: some tens of roundings of numbers of size one.
        torch.testing.assert_close(hidden.double(), layer.expected(token_ids, batch), rtol=1e-4, atol=1e-4)
        slots = layer.k_cache[:NUM_BLOCKS].flatten(0, 1)
        assert torch.equal(slots[untouched], before[:NUM_BLOCKS].flatten(0, 1)[untouched])
    assert sorted(recorded.sizes) == [(1, 64), (4, 64), (8, 64), (16, 64)]


@torch.inference_mode()
def test_what_a_replay_returned_stays_when_another_one_runs(device: torch.device) -> None:
    assert launch.interpreted() or not graphs.unavailable(device)
    layer = Layer(device)
    recorded = DecodeGraphs(layer, BLOCK_SIZE, NUM_BLOCKS, as_it_is if launch.interpreted() else None)
    batch = RaggedBatch.build([3, 5], [1, 1], [[0], [1]], BLOCK_SIZE, device)
    first = recorded.run(torch.tensor([1, 2], device=device), batch)
    kept = first.clone()
    recorded.run(torch.tensor([3, 4], device=device), batch)
    recorded.run(torch.tensor([5], device=device), RaggedBatch.build([9], [1], [[2]], BLOCK_SIZE, device))
    assert torch.equal(first, kept)
