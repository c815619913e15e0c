"""What `callboard bench kernels` computes: sizes for a card, for a CPU, and for a check that all of it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.config import LlamaConfig

LLAMA_7B = LlamaConfig(
    vocab_size=32000,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    context_length=4096,
    tied_embeddings=False,
)
# SmolLM2-135M's sizes.
SMALL = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope_theta=100000.0,
    context_length=4096,
    tied_embeddings=False,
)


@dataclass(frozen=True)
class Heads:
    """Of attention: query heads, key/value heads, their size."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Sizes:
    """`cycle_bytes`: a row goes over so much distinct memory before it sees the same again. `tensor_bytes`: of each
    tensor that an elementwise row reads or writes whole. `row_counts`: rows of x in which 4-bit products are held
    against bfloat16 ones."""

    copy_bytes: int
    matrix_size: int
    cycle_bytes: int
    tensor_bytes: int
    heads: Heads
    num_seqs: int
    context: int
    prefill: int
    hidden: int
    intermediate: int
    row_counts: tuple[int, ...]
    loss_tokens: int
    loss_hidden: int
    loss_vocab: int
    model: LlamaConfig
    batch: int
    prompt: int
    output: int
    rounds: int = 5
    group_size: int = 128
    block_size: int = 16


CARD = Sizes(
    copy_bytes=1 << 30,
    matrix_size=8192,
    cycle_bytes=512 << 20,
    tensor_bytes=64 << 20,
    heads=Heads(32, 8, 128),
    num_seqs=32,
    context=4096,
    prefill=4096,
    hidden=4096,
    intermediate=14336,
    row_counts=(1, 2, 4, 8, 16, 32, 64),
    loss_tokens=8192,
    loss_hidden=2048,
    loss_vocab=131072,
    model=LLAMA_7B,
    batch=64,
    prompt=128,
    output=128,
)
# Several times what the caches of a server's processor hold, and no more than minutes of work for two cores.
CPU = Sizes(
    copy_bytes=256 << 20,
    matrix_size=2048,
    cycle_bytes=96 << 20,
    tensor_bytes=32 << 20,
    heads=Heads(32, 8, 128),
    num_seqs=8,
    context=1024,
    prefill=1024,
    hidden=2048,
    intermediate=8192,
    row_counts=(1, 16),
    loss_tokens=512,
    loss_hidden=256,
    loss_vocab=65536,
    model=SMALL,
    batch=16,
    prompt=16,
    output=8,
    rounds=3,
)


def quick(sizes: Sizes) -> Sizes:
    """A check that all of it runs, not a measurement."""
    return replace(
        sizes,
        copy_bytes=4 << 20,
        matrix_size=128,
        cycle_bytes=1 << 20,
        tensor_bytes=1 << 18,
        heads=Heads(4, 2, 64),
        num_seqs=3,
        context=64,
        prefill=64,
        hidden=256,
        intermediate=384,
        row_counts=(1, 3),
        loss_tokens=24,
        loss_hidden=32,
        loss_vocab=512,
        model=LlamaConfig(
            vocab_size=96,
            hidden_size=128,
            intermediate_size=256,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rms_norm_eps=1e-5,
            rope_theta=10000.0,
            context_length=128,
            tied_embeddings=False,
        ),
        batch=3,
        prompt=8,
        output=4,
        rounds=2,
        group_size=32,
    )
