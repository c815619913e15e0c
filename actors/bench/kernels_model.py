"""A whole decoder with random weights, end to end: one stream against what memory allows, and a batch beside a peer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from ...kernels.grouped import GroupedInt4
from ...kernels.weights import WeightFormat
from ...schemas.serve_steps import Sampling, SequenceStart, Step, StepSequence
from ..models.config import LlamaConfig
from ..models.llama import LlamaDecoder
from ..models.matrices import Weight
from ..models.native_decoder import NativeDecoder, why_not_native
from ..models.served import ServedModel
from ..serve.grammar import GrammarCompiler
from ..serve.runner import Runner
from .errors import BenchFailed
from .kernels_meter import Ceilings, Meter
from .kernels_rows import DTYPE
from .kernels_sizes import Sizes
from .random_model import SCALE, transformers_sizes
from .report import Report

# Of the share of the floor that a single stream reaches.
STREAM_BF16, STREAM_W4 = "stream_bf16_over_floor", "stream_w4_over_floor"
BATCH_OVER_PEER = "batch_over_transformers_cb"


def random_weights(config: LlamaConfig, device: torch.device, group_size: int) -> Iterator[tuple[str, Weight]]:
    """Every canonical tensor of a decoder; with a `group_size`, matrices of the layers in four bits."""
    with torch.device("meta"):
        shapes = LlamaDecoder(config, DTYPE)
    for name in shapes.canonical_names():
        shape = tuple(shapes.target(name).shape)
        if group_size and shapes.product_of(name) is not None:
            groups = (shape[0], shape[1] // group_size)
            yield (
                name,
                GroupedInt4(
                    torch.randint(0, 256, (shape[0], shape[1] // 2), dtype=torch.uint8, device=device),
                    torch.full(groups, SCALE / 4, device=device).half(),
                    torch.full(groups, 8.0, device=device).half(),
                ),
            )
        elif len(shape) == 1:
            yield name, torch.ones(shape, dtype=DTYPE, device=device)
        else:
            yield name, torch.randn(shape, dtype=DTYPE, device=device).mul_(SCALE)


def random_decoder(config: LlamaConfig, device: torch.device, group_size: int, *, native: bool) -> ServedModel:
    """In bfloat16, or with matrices of the layers in four bits."""
    quantized = group_size > 0
    if native:
        format = WeightFormat.INT4 if quantized else WeightFormat.BFLOAT16
        decoder = NativeDecoder(config, format, WeightFormat.BFLOAT16, torch.get_num_threads(), quantized=quantized)
    else:
        with torch.device(device):
            decoder = LlamaDecoder(config, DTYPE, quantized=quantized).eval()
    decoder.load_weights(random_weights(config, device, group_size))
    if isinstance(decoder, LlamaDecoder):
        decoder.settle()
    return decoder


def measure_model(meter: Meter, sizes: Sizes, ceilings: Ceilings, report: Report) -> dict[str, list[float]]:
    """Reports rates; the ratios by the names of their targets."""
    found: dict[str, list[float]] = {}
    device, config = meter.device, sizes.model
    engines = ["torch"]
    if device.type == "cpu" and not why_not_native(config):
        engines.append("native")
    for target, name, wanted in ((STREAM_BF16, "bf16", 0), (STREAM_W4, "w4", sizes.group_size)):
        # Groups must divide what a product takes in.
        group = next((size for size in (wanted, 64, 32) if wanted and _divides(config, size)), 0)
        for engine in engines:
            decoder = random_decoder(config, device, group, native=engine == "native")
            rounds = [_run(decoder, sizes, 1) for _ in range(meter.rounds + 1)][1:]  # the first one warms up
            rates = [decode for decode, _ in rounds]
            report.add(f"stream_{name}.{engine}", rates, "tokens/s")
            floor = _bytes_of_a_step(decoder, config, sizes) / ceilings.copy
            found[target] = [floor * rate for rate in rates]
            report.add(f"stream_{name}_over_floor.{engine}", found[target], "of floor")
            if not group:
                rounds = [_run(decoder, sizes, sizes.batch) for _ in range(meter.rounds + 1)][1:]
                found[BATCH_OVER_PEER] = [whole for _, whole in rounds]
                report.add(f"batch.{engine}", found[BATCH_OVER_PEER], "tokens/s")
            del decoder
    peer = transformers_rates(sizes, device, meter.rounds)
    report.add("batch.transformers_cb", peer, "tokens/s")
    found[BATCH_OVER_PEER] = [a / b for a, b in zip(found[BATCH_OVER_PEER], peer, strict=True)]
    return found


def _divides(config: LlamaConfig, size: int) -> bool:
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    return all(width % size == 0 for width in widths)


def _bytes_of_a_step(decoder: ServedModel, config: LlamaConfig, sizes: Sizes) -> int:
    """What one step must read: the weights, of the embedding but a row, and the keys and values of what came before."""
    embedding = 0 if config.tied_embeddings else config.vocab_size * config.hidden_size * _vocabulary_bytes(decoder)
    tokens = sizes.prompt + sizes.output // 2  # on average
    kv = 2 * config.num_layers * config.num_kv_heads * config.head_dim * DTYPE.itemsize * tokens
    return decoder.weight_bytes - embedding + kv


def _vocabulary_bytes(decoder: ServedModel) -> int:
    """Of each value of the embedding: the native kernels keep it in 8 bits beside 4-bit matrices."""
    return 1 if isinstance(decoder, NativeDecoder) and decoder.weights is WeightFormat.INT4 else DTYPE.itemsize


def _run(decoder: ServedModel, sizes: Sizes, num_seqs: int) -> tuple[float, float]:
    """Prompts answered by the likeliest tokens, as a replica computes them: output tokens/s of the steps after the
    prompts', and of all."""
    per_seq = -(-(sizes.prompt + sizes.output) // sizes.block_size)
    runner = Runner(decoder, per_seq * num_seqs, sizes.block_size, _no_grammars)
    prompts = torch.randint(sizes.model.vocab_size, (num_seqs, sizes.prompt)).tolist()
    steps = [
        Step(0, tuple(_first_part(number, prompt, per_seq) for number, prompt in enumerate(prompts))),
        *(
            Step(number, tuple(StepSequence(seq, sizes.prompt + number - 1, 1, draws=True) for seq in range(num_seqs)))
            for number in range(1, sizes.output)
        ),
    ]
    began = time.perf_counter()
    runner.execute(steps[0])
    prefilled = time.perf_counter()
    for step in steps[1:]:
        runner.execute(step)
    ended = time.perf_counter()
    return num_seqs * (sizes.output - 1) / (ended - prefilled), num_seqs * sizes.output / (ended - began)


def _first_part(number: int, prompt: list[int], num_blocks: int) -> StepSequence:
    start = SequenceStart(token_ids=tuple(prompt), num_prompt_tokens=len(prompt), sampling=Sampling(temperature=0.0))
    blocks = tuple(range(number * num_blocks, (number + 1) * num_blocks))
    return StepSequence(number, 0, len(prompt), blocks, draws=True, start=start)


def _no_grammars() -> GrammarCompiler:
    raise AssertionError("nothing here has a grammar")


def transformers_rates(sizes: Sizes, device: torch.device, rounds: int) -> list[float]:
    """The same batches of a model of the same sizes through transformers' continuous batching. Raises BenchFailed."""
    try:
        import transformers
        from transformers.generation.configuration_utils import ContinuousBatchingConfig
    except ImportError as error:
        raise BenchFailed(f"transformers is not installed: {error}") from error
    config = sizes.model
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.LlamaForCausalLM(transformers_sizes(config))
    model = model.to(DTYPE).eval()
    page = 256
    num_pages = sizes.batch * (-(-(sizes.prompt + sizes.output) // page) + 1)
    batching = ContinuousBatchingConfig(page_size=page, num_blocks=num_pages)
    generation = transformers.GenerationConfig(
        max_new_tokens=sizes.output, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    rates: list[float] = []
    for _ in range(rounds + 1):  # the first one warms up
        prompts = torch.randint(config.vocab_size, (sizes.batch, sizes.prompt)).tolist()
        began = time.perf_counter()
        answers = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching, progress_bar=False
        )
        seconds = time.perf_counter() - began
        if errors := [answer.error for answer in answers.values() if answer.error]:
            raise BenchFailed(f"transformers' continuous batching failed: {errors[0]}")
        rates.append(sizes.batch * sizes.output / seconds)
    return rates[1:]
