"""What the ranks of a group do in these tests: train a tiny random LLaMA, from and to checkpoints."""

from __future__ import annotations

import contextlib
import hashlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from callboard.actors.train.checkpoint import CheckpointFailed, CheckpointWriter, load
from callboard.actors.train.group import Group, alone, leave, meet
from callboard.actors.train.memory import Sizes, StateBytes, by_formula
from callboard.actors.train.rng import rng_state, seed_rng, set_rng_state
from callboard.actors.train.sharding import shard_model
from callboard.schemas.train import OptimizerSettings, ShardSettings, TrainConfig

CPU = torch.device("cpu")
VOCAB, LENGTH, NUM_SAMPLES = 65, 12, 8


@dataclass(frozen=True)
class Job:
    """`checkpoint`: to go on from. `save`: written after the last step."""

    config: TrainConfig
    lora: bool = False
    dtype: torch.dtype = torch.float32
    steps: int = 4
    num_micro_batches: int = 4
    checkpoint: Path | None = None
    save: Path | None = None
    hidden: int = 24
    dropout: float = 0.0


@dataclass
class Outcome:
    losses: list[float]
    norms: list[float]
    digest: str
    weights: dict[str, torch.Tensor]
    memory: StateBytes
    formula: StateBytes
    extra: dict[str, Any] = field(default_factory=dict)


def config_of(zero: int = 1, *, offload: bool = False, **optimizer: Any) -> TrainConfig:
    return TrainConfig(
        model="",
        data="",
        out="",
        optimizer=OptimizerSettings(**{"lr": 1e-2, "weight_decay": 0.1, **optimizer}),
        shards=ShardSettings(zero=zero, offload=offload),
    )


def tiny_model(dtype: torch.dtype, lora: bool, hidden: int, dropout: float) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden,
            intermediate_size=2 * hidden - 8,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attention_dropout=dropout,
            tie_word_embeddings=True,
        )
    )
    module = nn.Module.to(model, dtype)
    if lora:
        from peft import LoraConfig, inject_adapter_in_model

        module.requires_grad_(False)
        adapter = LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        module = inject_adapter_in_model(adapter, module)
    return module.train()


def loss_of(module: nn.Module, tokens: torch.Tensor, count: int) -> torch.Tensor:
    logits = module(input_ids=tokens, use_cache=False).logits[:, :-1].float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum") / count


def train(group: Group, job: Job) -> Outcome:
    module = tiny_model(job.dtype, job.lora, job.hidden, job.dropout)
    sizes = Sizes.of(module)
    sharded = shard_model(module, group, job.config)
    begin = 0
    seed_rng(job.config.seed, 0, group.rank)
    extra: dict[str, Any] = {}
    if job.checkpoint is not None:
        loaded = load(job.checkpoint, sharded)
        extra, begin = loaded.extra, loaded.extra["step"]
        if loaded.rank_state is None:
            seed_rng(job.config.seed, begin, group.rank)
        else:
            set_rng_state(loaded.rank_state, CPU)
    losses: list[float] = []
    norms: list[float] = []
    for step in range(begin, begin + job.steps):
        numbers = torch.Generator().manual_seed(step)
        # What repeats can be learned, so a wrong step shows in the loss.
        samples = torch.randint(0, VOCAB, (NUM_SAMPLES, LENGTH // 4), generator=numbers).repeat(1, 4)
        batches = samples.view(job.num_micro_batches, -1, LENGTH)
        mine = batches[group.rank :: group.world_size]
        total = torch.zeros(())
        for number, tokens in enumerate(mine):
            sharded.begin_micro_batch(last=number == len(mine) - 1)
            loss = loss_of(sharded.module, tokens, batches[:, :, 1:].numel())
            loss.backward()
            total += loss.detach()
        norm = sharded.finish_gradients()
        sharded.step(job.config.optimizer.lr, (1 / norm.clamp(min=1)).float())
        if group.world_size > 1:
            dist.all_reduce(total)
        losses.append(float(total))
        norms.append(float(norm))
    if job.save is not None:
        writer = CheckpointWriter(group)
        writer.save(job.save, sharded, {"step": begin + job.steps}, rng_state(CPU)).wait()
    weights = {name: tensor.clone() for name, tensor in sharded.export()}
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in sorted(weights.items()))).hexdigest()
    return Outcome(
        losses, norms, digest, weights, sharded.memory(), by_formula(sizes, job.config, group.world_size), extra
    )


def train_alone(job: Job) -> Outcome:
    return train(alone(CPU), job)


def train_together(rank: int, world_size: int, store: str, job: Job) -> Outcome:
    with meeting(rank, world_size, store) as group:
        return train(group, job)


@contextlib.contextmanager
def meeting(rank: int, world_size: int, store: str) -> Iterator[Group]:
    group = meet(FileStore(store, world_size), rank, world_size, CPU)
    try:
        yield group
    finally:
        leave(group)


def save_with_one_that_cannot(rank: int, world_size: int, store: str, folder: Path) -> str:
    """Rank 1 may write no file of more than a few bytes; then both try again."""
    with meeting(rank, world_size, store) as group:
        sharded = shard_model(torch.nn.Linear(200, 200), group, config_of(3))
        writer = CheckpointWriter(group)
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, old[1]))
        try:
            writer.save(folder / "step-1", sharded, {}, b"").wait()
        except CheckpointFailed as error:
            told = f"{error.code}: {error}"
        else:
            told = "written"
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        writer.save(folder / "step-2", sharded, {}, b"").wait()
        return told
