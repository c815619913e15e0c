"""A model is quantized: the whole work as a request, what is heard meanwhile, and the report; and the part of it that
an actor does for its group of layers."""

from __future__ import annotations

from .base import Message, StreamRequest
from .blob import Blob


class QuantizeProgress(Message, frozen=True, tag="quantize.progress"):
    """`stage`: "layers", then "checking"; `done` of `total` of its steps. `error`: what the worst product of the layer
    just done lost, as a share of its outputs' mean square."""

    stage: str
    done: int
    total: int
    error: float = 0.0


class ProductError(Message, frozen=True, tag="quantize.error"):
    """What a product lost on the calibration text, as a share of its outputs' mean square."""

    layer: int
    product: str
    share: float


class QuantizeReport(Message, frozen=True, kw_only=True, tag="quantize.report"):
    """What came of it. Perplexities and `token_agreement` (the share of positions where both versions find the same
    next token) are of text that calibration has not seen. `bits_per_weight` counts every tensor, embeddings too."""

    model: str
    out: str
    method: str
    bits: int
    group_size: int
    symmetric: bool
    layout: str
    kv: str
    calibration: str
    calibration_tokens: int
    held_out_tokens: int
    bytes_before: int
    bytes_after: int
    bits_per_weight: float
    perplexity_before: float
    perplexity_after: float
    token_agreement: float
    errors: tuple[ProductError, ...]
    seconds: float


class Quantize(StreamRequest[QuantizeProgress, QuantizeReport], frozen=True, kw_only=True, tag="quantize.run"):
    """Quantize `model` (a name of the store, or a path) into the folder `out`, both on the machine of the actor that
    is asked. What fields mean is said by `callboard quantize --help`; `data` "" is the built-in text. Asked again after
    an interruption, it goes on after the last finished layer. `group_size` 0: the largest of the usual ones that fits.
    `search_alpha`: in place of one `alpha`, each product's own.

    `layers_per_actor`: 0 for one actor with all layers. With several groups each starts from the unquantized model's
    hidden states, and they run beside each other. `labels`: groups go to nodes that have all of these; with none, into
    processes of the actor's own machine.
    """

    model: str
    out: str
    method: str = "gptq"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    layout: str = "compressed-tensors"
    kv: str = ""
    alpha: float = 0.5
    data: str = ""
    samples: int = 64
    length: int = 512
    seed: int = 0
    layers_per_actor: int = 0
    labels: tuple[str, ...] = ()
    template: str = ""
    steps: int = 200
    search_alpha: bool = False


class LayerQuantized(Message, frozen=True, tag="quantize.layer"):
    """`tensors`: the layer's part of the checkpoint, `hidden`: the calibration's stream after it, both safetensors."""

    layer: int
    tensors: Blob
    hidden: Blob
    errors: tuple[ProductError, ...]


class LayerKept(Message, frozen=True, tag="quantize.layer_kept"):
    """Whoever asked has this layer's bytes: they need be held no longer."""

    layer: int


class LayersQuantized(Message, frozen=True, tag="quantize.layers_done"):
    layers: int


class QuantizeLayers(StreamRequest[LayerQuantized, LayersQuantized], frozen=True, kw_only=True, tag="quantize.layers"):
    """Quantize the layers `first` to `last` - 1 of the model at the path `model`, which the actor's machine has too.
    `hidden`: the calibration's stream before the first, safetensors; `recipe` as JSON."""

    model: str
    first: int
    last: int
    hidden: Blob
    recipe: bytes
