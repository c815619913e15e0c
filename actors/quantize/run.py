"""From a model to a quantized one beside it: plain functions, with no actor and no bus.

`Job` is the whole work; `quantize_layers` the part of it that an actor does for its group of layers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch

from ...runtime.errors import UsageError
from ...schemas.quantize import ProductError, QuantizeProgress, QuantizeReport
from .block import advance
from .checkpoint import layer_tensors, plain, size_of, write_config
from .evaluate import block_of, compare
from .layer import quantize_layer
from .recipe import Recipe
from .report import write_report
from .source import FolderSource, Source, load_vocabulary, open_source
from .stream import Stream
from .work import WorkFolder


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """`calibration`, `held_out`: token ids, int64 [num_seqs, length]; `text` says where they came from."""

    model: str
    out: str
    recipe: Recipe
    text: str
    seed: int


@dataclass(frozen=True)
class LayerDone:
    """`stream`: the calibration's after the layer."""

    index: int
    tensors: dict[str, torch.Tensor]
    errors: dict[str, float]
    stream: Stream


def quantize_layers(source: Source, layers: range, recipe: Recipe, stream: Stream) -> Iterator[LayerDone]:
    """Quantize some layers in a row. `stream`: before the first of them, and changed; where none of them was before,
    it need not have the plain part. What is yielded shares it: it is true until the next is asked for."""
    recipe = recipe.of_type(source.dtype)
    if recipe.wants_plain and stream.plain is None:
        stream.plain = stream.quantized.clone()
    for index in layers:
        block = block_of(source.config, source, index)
        done = quantize_layer(block, stream, recipe)
        tensors = layer_tensors(index, block.layer, done.products, recipe, source.dtype)
        yield LayerDone(index, tensors, done.error, stream)


def advance_plain(source: Source, layers: range, hidden: torch.Tensor) -> None:
    """Take a stream through layers as they are, in place."""
    for index in layers:
        advance(block_of(source.config, source, index), hidden)


def open_work(job: Job, source: Source, calibration: torch.Tensor) -> WorkFolder:
    """The folder of this work, new or as it was left. Raises UsageError."""
    job.recipe.check(source.config)
    if not len(calibration):
        raise UsageError("there is no calibration text")
    path = Path(job.model)
    stamps = [path.stat().st_mtime_ns] if path.is_file() else [f.stat().st_mtime_ns for f in sorted(path.iterdir())]
    what = {
        "job": msgspec.to_builtins(msgspec.structs.replace(job, out="")),
        "stamps": stamps,
        "tokens": list(calibration.shape),
        "sum": int(calibration.sum()),
    }
    return WorkFolder(Path(job.out), what, source.config.num_layers)


def embed(source: Source, token_ids: torch.Tensor) -> torch.Tensor:
    return load_vocabulary(source)["model.embed_tokens.weight"][token_ids]


def run(
    job: Job,
    calibration: torch.Tensor,
    held_out: torch.Tensor,
    progress: Callable[[QuantizeProgress], None] = lambda _: None,
) -> QuantizeReport:
    """All of it in this process. Interrupted, it goes on after the last finished layer when it is run again.

    Raises UsageError, NoSuchModel, ModelDamaged, UnsupportedModel; `job.out` is there whole or not at all.
    """
    began = time.monotonic()
    source = open_source(Path(job.model))
    try:
        with torch.inference_mode():
            work = open_work(job, source, calibration)
            num_layers = source.config.num_layers
            first = left_at(work, range(num_layers))
            if first < num_layers:
                stream = work.stream(first) if first else Stream(embed(source, calibration))
                for done in quantize_layers(source, range(first, num_layers), job.recipe, stream):
                    keep_layer(work, done)
                    progress(QuantizeProgress("layers", done.index + 1, num_layers, max(done.errors.values())))
            return finish(job, source, work, calibration, held_out, began, progress)
    finally:
        source.close()


def left_at(work: WorkFolder, layers: range) -> int:
    """The layer of a group to go on with: the last one such that it and those before it need not be done again."""
    for index in range(layers.stop, layers.start, -1):
        whole = all(work.is_done(layer) for layer in range(layers.start, index))
        if whole and (index == layers.stop or work.has_stream(index)):
            return index
    return layers.start


def keep_layer(work: WorkFolder, done: LayerDone) -> None:
    """The layer first and then the stream after it: whoever goes on finds either both or neither of use."""
    work.write_shard(done.index, done.tensors)
    work.add_errors(done.index, done.errors)
    work.write_stream(done.index + 1, done.stream)
    work.drop_stream(done.index)


def finish(
    job: Job,
    source: Source,
    work: WorkFolder,
    calibration: torch.Tensor,
    held_out: torch.Tensor,
    began: float,
    progress: Callable[[QuantizeProgress], None],
) -> QuantizeReport:
    """After the last layer: what belongs to none, the configuration, the comparison from what was written, and the
    rename."""
    recipe, num_layers = job.recipe, source.config.num_layers
    vocabulary = load_vocabulary(source)
    work.write_shard(num_layers, {name: plain(name, tensor, source.dtype) for name, tensor in vocabulary.items()})
    write_config(work, source.write_rest(work.result), recipe, source.dtype)
    written = FolderSource(work.result)
    quality = compare(
        source,
        written,
        held_out,
        rounds_inputs=recipe.quantized_inputs,
        kv=recipe.kv,
        step=lambda done: progress(QuantizeProgress("checking", done, 2 * num_layers)),
    )
    path = Path(job.model)
    bytes_before = size_of(path) if path.is_dir() else path.stat().st_size
    report = QuantizeReport(
        model=job.model,
        out=job.out,
        method=recipe.method,
        bits=recipe.bits,
        group_size=recipe.group_size if recipe.bits == 4 else 0,
        symmetric=recipe.symmetric or recipe.bits == 8,
        layout=recipe.layout,
        kv=recipe.kv,
        calibration=job.text,
        calibration_tokens=calibration.numel(),
        held_out_tokens=quality.num_tokens,
        bytes_before=bytes_before,
        bytes_after=size_of(work.result),
        bits_per_weight=8 * size_of(work.result) / count_weights(source),
        perplexity_before=quality.perplexity_before,
        perplexity_after=quality.perplexity_after,
        token_agreement=quality.agreement,
        errors=tuple(
            ProductError(int(layer), product, share)
            for layer, errors in sorted(work.errors().items(), key=lambda pair: int(pair[0]))
            for product, share in errors.items()
        ),
        seconds=time.monotonic() - began,
    )
    write_report(work.result, report)
    work.finish()
    return report


def count_weights(source: Source) -> int:
    """Numbers of the model, as its configuration says."""
    config = source.config
    attention = config.hidden_size * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size + 2 * config.hidden_size
    vocabulary = config.vocab_size * config.hidden_size * (1 if config.tied_embeddings else 2)
    return config.num_layers * layer + vocabulary + config.hidden_size
