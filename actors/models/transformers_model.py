"""Any other causal model of transformers, with this engine's paged attention in its layers.

The model's own code runs, layer by layer; only attention is replaced (`paged_in_transformers`). Whether that is all
that its layers exchange over time cannot be read off a class, so it is tried: a model is served if a few tokens, in
pieces and beside others, have the same logits as in transformers alone, and refused otherwise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...kernels.quantized import QuantizedWeight
from ...kernels.ragged import RaggedBatch
from ...kernels.weights import FOUR_BITS, WeightFormat
from ...runtime.errors import CallboardError, ModelDamaged
from ...schemas.serve import AdapterInfo
from .errors import UnsupportedModel
from .folder import ModelFolder
from .kv_cache import KVCache
from .lora import Adapter, AdapterStore
from .matrices import Quantized, place
from .one_by_one import forward_one_by_one, rows_one_by_one
from .paged_in_transformers import NAME, CurrentStep, current, register
from .peft_folder import read_peft
from .quantized_transformers import QuantizedLinear, plain_state
from .transformers_config import TransformersShape, transformers_config, transformers_shape

# The trial: a text that comes in two pieces of so many tokens, the second of them beside the whole of another text; and
# how far its logits may be from those of transformers, relative to their size. In bfloat16 two orders of rounding
# differ by some percent.
_TRIAL_PIECES = (5, 3)
_TRIAL_OTHER = 3
_TRIAL_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


class TransformersModel:
    """A `ServedModel`. `load` makes one."""

    kernels = "transformers"

    def __init__(self, model: Any, shape: TransformersShape, dtype: torch.dtype, kv: torch.dtype | None = None) -> None:
        """Takes `model`, a causal model in evaluation mode, over. `kv`: how keys and values are kept, where it is not
        `dtype`. Raises UnsupportedModel."""
        self.shape = shape
        self.dtype = dtype
        self.kv = kv or dtype
        self.vocab_size = shape.vocab_size
        self.context_length = shape.context_length
        self._modules: dict[str, nn.Module] = dict(model.named_modules())
        weights = {id(weight): weight.nbytes for weight in model.parameters()}
        self.weight_bytes: int = sum(weights.values())
        self.device: torch.device = next(model.parameters()).device
        self._adapters = AdapterStore(dtype, self.device)
        self._hooked: set[str] = set()
        self._layers: dict[int, int] = {}
        self.kv_shapes: tuple[tuple[int, int], ...] = ()
        register()
        with torch.inference_mode():
            text = torch.arange(sum(_TRIAL_PIECES), device=self.device) % self.vocab_size
            other = text.flip(0)[:_TRIAL_OTHER]
            expected = torch.cat([_alone(model, text), _alone(model, other)])
            self._decoder, self._head = _take_apart(model)
            hidden = self._learn(text, other)
            _compare(type(model).__name__, self.logits(hidden), expected, _TRIAL_TOLERANCE[dtype])
        self.hidden_size: int = hidden.shape[-1]

    @classmethod
    def load(
        cls,
        folder: ModelFolder,
        dtype: torch.dtype,
        kv: torch.dtype | None = None,
        *,
        quantized: bool = False,
        device: torch.device | None = None,
    ) -> TransformersModel:
        """`quantized`: linear layers that the folder has in few bits are kept so. Raises ModelDamaged,
        UnsupportedModel."""
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM

        config, shape = transformers_config(folder), transformers_shape(folder)
        folder.weight_files()  # says clearly what is missing
        source: dict[str, Any] = {"pretrained_model_name_or_path": folder.path, "local_files_only": True}
        model_class: Any = AutoModelForCausalLM
        matrices: dict[str, Quantized] = {}
        try:
            with quiet():
                if folder.scheme is not None:
                    model_class, config, state, matrices = plain_state(folder, config, dtype, keep=quantized)
                    source = {"pretrained_model_name_or_path": None, "state_dict": state}
                model, report = model_class.from_pretrained(
                    **source,
                    config=config,
                    dtype=dtype,
                    attn_implementation="eager",
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are in the report
                )
        except SafetensorError as error:
            raise ModelDamaged(f"{folder.path} is damaged: {error}", hint="fetch the model again") from error
        except (RuntimeError, ValueError, KeyError, OSError, ImportError) as error:
            raise UnsupportedModel(f"{folder.path}: transformers cannot load this model: {_line(error)}") from error
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if found := sorted(map(str, report.get(what) or ())):
                raise ModelDamaged(f"{folder.path}: {len(found)} {what.replace('_', ' ')}, among them '{found[0]}'")
        for name, weight in model.named_parameters():
            if not bool(weight.sum(dtype=torch.float32).isfinite()):
                raise ModelDamaged(f"{folder.path}: tensor '{name}' holds values that are not finite")
        served = cls(model.eval().to(device), shape, dtype, kv)
        if matrices:
            served.keep(matrices)
        return served

    def new_cache(self, num_blocks: int, block_size: int) -> KVCache:
        return KVCache(self, num_blocks, block_size, self.kv, self.device)

    def quantize(self, format: WeightFormat) -> None:
        """Keep the linear layers in `format` from now on, the output matrix in int8 where that has four bits.

        Left as they are: embeddings, an output matrix that is one of them, and what is no linear layer (experts that
        are one tensor). Before adapters are loaded.
        """
        vocabulary = WeightFormat.INT8 if format in FOUR_BITS else format

        def quantized(name: str, layer: Any, root: nn.Module) -> Quantized:
            weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.T
            return QuantizedWeight.from_float(weight.detach(), format if root is self._decoder else vocabulary)

        self._replace_weights(quantized)

    def keep(self, matrices: Mapping[str, Quantized]) -> None:
        """Keep linear layers in what their numbers came from, by the layer's name in the files.

        Left as numbers: what `quantize` leaves, and what has another name in transformers than in the files.
        """
        self._replace_weights(lambda name, layer, root: matrices.get(name))

    def settle(self) -> None:
        """When all weights are there: quantized ones are laid out as the device's kernels read them."""
        for root in (self._decoder, self._head):
            place(root, self.device)

    def _replace_weights(self, weight_of: Callable[[str, Any, nn.Module], Quantized | None]) -> None:
        embeddings = {id(one.weight) for one in self._modules.values() if isinstance(one, nn.Embedding)}
        names = {id(module): name for name, module in self._modules.items()}
        for root in (self._decoder, self._head):
            for path in [path for path, module in root.named_modules() if _is_product(module)]:
                layer: Any = root.get_submodule(path)  # looked up anew, so that those replaced are freed
                if id(layer.weight) in embeddings:
                    continue
                name = names[id(layer)]
                weight = weight_of(name, layer, root)
                if weight is None:
                    continue
                root.set_submodule(path, QuantizedLinear(weight, layer.bias))
                self.weight_bytes += weight.nbytes - layer.weight.nbytes
                self._modules[name] = root.get_submodule(path)
        self._try_quantized()

    def _try_quantized(self) -> None:
        """Raises UnsupportedModel where a layer's code wants the matrix itself of what was replaced."""
        num_tokens = sum(_TRIAL_PIECES)
        batch = RaggedBatch.build([num_tokens], [num_tokens], [[0]], num_tokens, self.device)
        with torch.inference_mode():
            try:
                hidden = self.forward(
                    torch.arange(num_tokens, device=self.device) % self.vocab_size, self.new_cache(1, num_tokens), batch
                )
                self.logits(hidden)
            except (AttributeError, TypeError, RuntimeError, ValueError) as error:
                kind = type(self._head).__name__
                raise UnsupportedModel(f"the weights of {kind} cannot be quantized: {_line(error)}") from error

    def forward(
        self,
        token_ids: torch.Tensor,
        cache: KVCache,
        batch: RaggedBatch,
        adapters: Sequence[str] | None = None,
        deterministic: bool = False,
    ) -> torch.Tensor:
        if deterministic and batch.num_tokens > 1:
            return forward_one_by_one(self.forward, token_ids, cache, batch, adapters)
        selected = self._adapters.select(adapters, batch)
        return self._run(token_ids, CurrentStep(batch, cache, self._layers, selected))

    def logits(self, hidden: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        if deterministic and len(hidden) > 1:
            return rows_one_by_one(self.logits, hidden)
        return self._head(inputs_embeds=hidden[None], use_cache=False).logits[0].float()

    def load_adapter(self, name: str, path: Path) -> AdapterInfo:
        info = self._adapters.load(name, path, lambda: self._read_adapter(path))
        for module in self._adapters.products(name):
            if module not in self._hooked:
                self._modules[module].register_forward_hook(_AddLowRank(module))
                self._hooked.add(module)
        return info

    def unload_adapter(self, name: str) -> None:
        self._adapters.unload(name)

    def adapters(self) -> tuple[AdapterInfo, ...]:
        return self._adapters.infos()

    def _run(self, token_ids: torch.Tensor, step: CurrentStep) -> torch.Tensor:
        token = current.set(step)
        try:
            out = self._decoder(input_ids=token_ids[None], position_ids=step.batch.positions[None], use_cache=False)
        finally:
            current.reset(token)
        return out.last_hidden_state[0]

    def _learn(self, text: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Final hidden states of both texts' tokens. On the way it is seen which modules keep keys and values, and of
        what size."""
        kind = type(self._head).__name__
        begin, end = _TRIAL_PIECES[0], len(text)
        cache = KVCache(self, 2, end, self.dtype, self.device)
        first = CurrentStep(
            RaggedBatch.build([begin], [begin], [[1]], end, self.device), cache, self._layers, learning=True
        )
        both = RaggedBatch.build([end, len(other)], [end - begin, len(other)], [[1], [0]], end, self.device)
        try:
            hidden = [self._run(text[:begin], first)]
            if not self._layers:
                raise UnsupportedModel(f"{kind} does not take its attention from transformers' registry")
            hidden.append(self._run(torch.cat([text[begin:], other]), CurrentStep(both, cache, self._layers)))
        except CallboardError:
            raise
        except Exception as error:  # the model's own code, told to do what it may never have done before
            raise UnsupportedModel(f"{kind} does not run with paged attention: {_line(error)}") from error
        # The trial is shorter than most windows, so whether they arrive is looked at apart.
        types = getattr(self._head.config.get_text_config(), "layer_types", None) or ()
        if types and sum(window > 0 for window in first.windows) != list(types).count("sliding_attention"):
            raise UnsupportedModel(f"{kind} does not tell its attention how far back a layer looks")
        self.kv_shapes = tuple((k.shape[2], k.shape[3]) for k in cache.k)
        return torch.cat(hidden)

    def _read_adapter(self, path: Path) -> Adapter:
        pairs = read_peft(path)
        for name, pair in pairs.items():
            module = self._modules.get(name)
            if not _is_product(module) or ".experts." in name:
                raise UnsupportedModel(f"{path} changes '{name}', which no adapter may change here")
            num_out, num_in = _sizes(module)
            if pair.a.shape[1] != num_in or pair.b.shape[0] != num_out:
                raise ModelDamaged(
                    f"{path} does not fit this model: '{name}' takes {num_in} and gives {num_out}, "
                    f"the adapter {pair.a.shape[1]} and {pair.b.shape[0]}"
                )
        return Adapter(max(pair.a.shape[0] for pair in pairs.values()), pairs)


class _AddLowRank:
    """After a linear layer: adds what the current step's adapters have for it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        step = current.get(None)
        if step is None or step.adapters is None:
            return
        x, y = args[0].flatten(0, -2), output.view(-1, output.shape[-1])
        if len(x) != step.batch.num_tokens:
            raise UnsupportedModel(f"'{self._name}' does not compute every token, so no adapter can change it")
        step.adapters.add(y, x, self._name)


class _Given(nn.Module):
    """Stands where a causal model has its decoder, and returns the hidden states that the model is given."""

    def forward(self, *args: object, inputs_embeds: torch.Tensor, **others: object) -> _Output:
        return _Output(inputs_embeds)


class _Output:
    """A decoder's output with nothing but hidden states: whatever else is looked up in it is None."""

    def __init__(self, last_hidden_state: torch.Tensor) -> None:
        self.last_hidden_state = last_hidden_state

    def __getattr__(self, name: str) -> None:
        return None

    def __getitem__(self, index: object) -> Any:
        return self.last_hidden_state if index == 0 else ()


def _alone(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The logits that transformers computes by itself, [num_tokens, vocab]."""
    positions = torch.arange(len(tokens), device=tokens.device)
    try:
        return model(input_ids=tokens[None], position_ids=positions[None], use_cache=False).logits[0].float()
    except TypeError as error:  # an unexpected keyword: it counts positions in a way of its own
        raise UnsupportedModel(f"{type(model).__name__} does not take positions: {_line(error)}") from error


def _take_apart(model: Any) -> tuple[Any, Any]:
    """(decoder, head): the model's decoder with paged attention, and the model with nothing in the decoder's place.

    So the head is all that the model does to hidden states, whatever scaling or capping it has beside its matrix.
    """
    kind = type(model).__name__
    decoder = model.get_decoder()
    names = [name for name, module in model.named_modules() if module is decoder]
    if not names or not names[0]:
        raise UnsupportedModel(f"{kind} has no decoder that can be told from its head")
    with quiet():
        try:
            model.set_attn_implementation(NAME)
        except (ValueError, KeyError, ImportError) as error:
            raise UnsupportedModel(f"{kind} does not take its attention from transformers' registry") from error
    model.set_submodule(names[0], _Given())
    return decoder, model


def _compare(kind: str, logits: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    error = float((logits - expected).norm() / expected.norm().clamp(min=1e-12))
    if not error <= tolerance:
        raise UnsupportedModel(
            f"{kind} computes something else with paged attention than alone (logits differ by {error:.1%}): "
            "its layers exchange more than keys and values"
        )


def _line(error: Exception) -> str:
    """The first line of what an error says, and its kind: a KeyError says only the key."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _is_product(module: nn.Module | None) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D | QuantizedLinear)


def _sizes(module: Any) -> tuple[int, int]:
    """(num_out, num_in) of a linear layer, of GPT-2's kind too, which keeps its matrix transposed."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, nn.Linear | QuantizedLinear) else (columns, rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and remarks on standard error; what matters in them is raised instead."""
    import logging as levels

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
