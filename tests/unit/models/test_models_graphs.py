"""What a recorded decoding step is given: padded buffers, with the results of the step as it is.

Nothing is recorded here, where there is no card: `record` hands back the pass itself. tests/gpu/test_graphs.py records.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from callboard.actors.models.loading import load_decoder
from callboard.kernels.gpu import graphs
from callboard.kernels.gpu.graphs import Compute, DecodeGraphs, Inputs
from callboard.kernels.ragged import RaggedBatch

CPU = torch.device("cpu")


class AsItIs:
    """In place of a `Recorder`."""

    def __call__(self, compute: Compute) -> Compute:
        return compute


def test_a_graph_is_hardly_larger_than_what_it_computes() -> None:
    assert [graphs.num_rows(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 256)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 256]
    assert max(graphs.num_rows(n) - n for n in range(1, graphs.MAX_ROWS + 1)) == graphs.MAX_PADDING
    assert [graphs.table_width(n) for n in (1, 64, 65, 128, 1000)] == [64, 64, 128, 128, 1024]


def test_only_steps_that_do_nothing_but_decode_are_taken() -> None:
    def batch(query_lens: list[int]) -> RaggedBatch:
        return RaggedBatch.build([9] * len(query_lens), query_lens, [[0, 1, 2]] * len(query_lens), 4)

    assert DecodeGraphs.takes(batch([1]))
    assert DecodeGraphs.takes(batch([1] * 256))
    for query_lens in ([1] * 257, [2], [1, 3], [2, 0], [0, 1, 2], [1, 0]):
        assert not DecodeGraphs.takes(batch(query_lens))
    unknown = batch([1, 1])
    object.__setattr__(unknown, "host", None)
    assert not DecodeGraphs.takes(unknown)  # only the device knows, and it is not asked


@given(num_seqs=st.integers(1, 40), block_size=st.sampled_from([1, 3, 4, 16]), first_spare=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_each_padding_row_is_a_sequence_in_a_spare_place_of_its_own(
    num_seqs: int, block_size: int, first_spare: int
) -> None:
    rows = graphs.num_rows(num_seqs)
    inputs = Inputs(rows, 64, block_size, first_spare, CPU)
    full = RaggedBatch.build([7] * rows, [1] * rows, [list(range(7))] * rows, block_size)
    inputs.fill(torch.full((rows,), 3), full)  # what an earlier step has left
    given = RaggedBatch.build([5] * num_seqs, [1] * num_seqs, [list(range(5))] * num_seqs, block_size)
    inputs.fill(torch.full((num_seqs,), 9), given)
    batch = inputs.batch()
    assert inputs.token_ids.tolist() == [9] * num_seqs + [0] * (rows - num_seqs)
    for ours, theirs in (
        (batch.positions, given.positions),
        (batch.slots, given.slots),
        (batch.seq_lens, given.seq_lens),
        (batch.block_tables[:, :5], given.block_tables),
    ):
        assert torch.equal(ours[:num_seqs], theirs)
    slots, places = batch.slots[num_seqs:].tolist(), batch.positions[num_seqs:]
    assert len(set(slots)) == rows - num_seqs
    for slot, place, seq_len, block in zip(
        slots,
        places.tolist(),
        batch.seq_lens[num_seqs:].tolist(),
        batch.block_tables[num_seqs:, 0].tolist(),
        strict=True,
    ):
        assert first_spare <= block < first_spare + graphs.num_spare_blocks(block_size)
        assert slot == block * block_size + place
        assert seq_len == place + 1 <= block_size
    assert batch.query_starts.tolist() == list(range(rows + 1))


def test_nothing_derived_from_a_batch_outlives_the_recording() -> None:
    inputs = Inputs(4, 64, 16, 3, CPU)
    inputs.batch().plans["attention"] = "of the step before"
    assert not inputs.batch().plans


@torch.inference_mode()
def test_decoding_in_graphs_gives_the_hidden_states_of_decoding_without(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "unavailable", lambda device: "")
    monkeypatch.setattr(graphs, "Recorder", AsItIs)
    with_graphs = load_decoder(tiny_path, torch.float32)
    without = load_decoder(tiny_path, torch.float32, cuda_graphs=False)
    caches = with_graphs.new_cache(12, 4), without.new_cache(12, 4)
    assert caches[0].graphs is not None
    assert caches[1].graphs is None
    tables = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    lengths = [5, 1, 4, 7]
    prompts = RaggedBatch.build(lengths, lengths, tables, 4)
    ids = torch.randint(40, (sum(lengths),))
    both = [model.forward(ids, cache, prompts) for model, cache in zip((with_graphs, without), caches, strict=True)]
    assert torch.equal(*both)
    assert not caches[0].graphs.sizes
    for seqs in ([0, 1, 2], [2], [0, 1, 2, 3], [3, 0]):  # as sequences come and go
        for seq in seqs:
            lengths[seq] += 1
        batch = RaggedBatch.build([lengths[s] for s in seqs], [1] * len(seqs), [tables[s] for s in seqs], 4)
        ids = torch.randint(40, (len(seqs),))
        both = [model.forward(ids, cache, batch) for model, cache in zip((with_graphs, without), caches, strict=True)]
        torch.testing.assert_close(*both, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(caches[0].k + caches[0].v, caches[1].k + caches[1].v, strict=True):
            assert isinstance(ours, torch.Tensor)
            torch.testing.assert_close(ours[:12], theirs, rtol=1e-5, atol=1e-5)
    assert set(caches[0].graphs.sizes) == {(4, 64), (1, 64), (2, 64)}


def test_without_a_card_nothing_is_recorded(tiny_path: Path) -> None:
    decoder = load_decoder(tiny_path, torch.float32)
    assert not decoder.records
    assert decoder.new_cache(4, 4).k[0].shape[0] == 4  # and no block is spare
    assert "NVIDIA" in graphs.unavailable(CPU)
