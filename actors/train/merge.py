"""An adapter merged into its base: a model of its own, which needs no PEFT and costs nothing more to serve.

What is added to each matrix is computed in float32 on the CPU, by PEFT; LoRA, rsLoRA and DoRA alike. Before anything is
written the merged model must answer as base and adapter did.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from ...runtime.errors import ConfigError, ModelDamaged, NoSuchModel
from ...schemas.train import Packing, Task
from ..models.converted import transformers_folder
from ..models.errors import UnsupportedModel
from ..models.folder import ModelFolder, read_json, safetensors_names
from ..models.loading import dtype_of
from ..models.peft_folder import CONFIG, PREFIX, WEIGHTS, check_base_is_unchanged
from ..models.store import ModelStore
from ..models.transformers_model import quiet
from .base_facts import base_facts
from .base_model import load_base
from .companions import copy_companions
from .model_card import README, merged_card
from .whole import check_free, whole_folder

# How far logits of the merged model may be from those of base and adapter, relative to their size, in float32.
_TOLERANCE = 1e-3
_TRIAL_TOKENS = 8


class MergeReport(msgspec.Struct, frozen=True):
    """`num_matrices`: of the base that the adapter changed. `dtype`: what the merged model is written in."""

    base: str
    adapter: str
    out: str
    dtype: str
    num_matrices: int
    num_parameters: int


def merge(adapter: Path, out: Path, base: str = "", dtype: str = "") -> MergeReport:
    """Write the model that `base` with `adapter` is into the folder `out`.

    `base`: a name of the store, or a path; "" for what the adapter says it is of. `dtype`: "" for the base's own.
    Raises NoSuchModel, ModelDamaged, UnsupportedModel, ConfigError, OSError.
    """
    check_free(out)
    config = _adapter_config(adapter)
    folder = transformers_folder(base_path(adapter, base))
    stored = dtype_of(dtype) if dtype else _dtype_in(ModelFolder(folder))
    task = Task.REWARD if config.get("task_type") == "SEQ_CLS" else Task.SFT
    model = load_base(folder, task, torch.float32, Packing.SORTED).eval()
    merged, num_matrices = _merged(model, adapter, config)
    with whole_folder(out) as making:
        num_parameters = _save(merged, stored, making)
        copy_companions(folder, making)
        (making / README).write_text(merged_card(base or folder.name, adapter.name, base_facts(base, folder)), "utf-8")
    return MergeReport(
        str(folder), str(adapter), str(out), str(stored).removeprefix("torch."), num_matrices, num_parameters
    )


def base_path(adapter: Path, base: str = "") -> Path:
    """Where the base of an adapter lies: `base`, or what the adapter names. Raises NoSuchModel."""
    store = ModelStore()
    if base:
        return store.path(base)
    named = read_json(adapter / CONFIG).get("base_model_name_or_path")
    hint = "name the base: `callboard merge BASE ADAPTER -o OUT`"
    if not isinstance(named, str) or not named:
        raise NoSuchModel(f"{adapter} does not say what it is an adapter of", hint=hint)
    for name in (named, f"hf:{named}"):  # PEFT writes a hub's names without the hub
        try:
            return store.path(name)
        except NoSuchModel:
            continue
    raise NoSuchModel(f"{adapter} is an adapter of {named}, which is not here", hint=hint)


def _adapter_config(adapter: Path) -> dict[str, Any]:
    if not (adapter / CONFIG).is_file():
        raise NoSuchModel(f"{adapter} is no adapter: it has no {CONFIG}", hint="give a folder that PEFT has saved")
    if not (adapter / WEIGHTS).is_file():
        raise ModelDamaged(f"{adapter} has no {WEIGHTS}")
    config = read_json(adapter / CONFIG)
    if config.get("peft_type") != "LORA":
        raise UnsupportedModel(f"{adapter} is an adapter of the kind {config.get('peft_type')!r}; LORA is merged here")
    check_base_is_unchanged(adapter, config)
    return config


def _dtype_in(folder: ModelFolder) -> torch.dtype:
    """What most models say; otherwise what their first tensor has."""
    name = folder.config.get("dtype") or folder.config.get("torch_dtype")
    return dtype_of(name) if isinstance(name, str) else next(tensor.dtype for _, tensor in folder.tensors())


def _merged(model: Any, adapter: Path, config: dict[str, Any]) -> tuple[Any, int]:
    import peft
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked below, or made right
            wrapped = peft.PeftModel.from_pretrained(model, str(adapter), torch_device="cpu")
    except (RuntimeError, ValueError, KeyError) as error:
        raise ModelDamaged(
            f"{adapter} does not fit its base: {error}", hint="is this the model that it was trained over?"
        ) from error
    _check_names(wrapped, adapter)
    _untie_adapted(model)
    expected = _trial(wrapped)
    num_matrices = sum(isinstance(layer, BaseTunerLayer) for layer in model.modules())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged: Any = wrapped.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise ModelDamaged(f"{adapter} cannot be merged: {error}") from error
    error = float((_trial(merged) - expected).norm() / expected.norm().clamp(min=1e-12))
    if not error <= _TOLERANCE:
        raise UnsupportedModel(f"{adapter}: the merged model answers otherwise than base and adapter do ({error:.2g})")
    return merged, num_matrices


def _check_names(wrapped: Any, adapter: Path) -> None:
    """PEFT only warns of matrices that are missing, and is silent about those that no layer takes."""
    import peft

    state = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    expected, found = frozenset(map(str, state)), safetensors_names(adapter / WEIGHTS)
    for what, names in (("lacks", expected - found), ("has unknown", _lora_only(found - expected))):
        if names:
            raise ModelDamaged(
                f"{adapter} {what} {len(names)} matrices, among them '{min(names).removeprefix(PREFIX)}'",
                hint="is this the model that it was trained over?",
            )


def _lora_only(names: frozenset[str]) -> frozenset[str]:
    """Without whole embeddings, which PEFT may put beside the adapter and reads back."""
    return frozenset(name for name in names if ".lora_" in name)


def _untie_adapted(model: Any) -> None:
    """Give the output matrix numbers of its own where it shares them with the embedding and one of the two is adapted:
    the other must stay as it is."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    if any(end is None for end in ends) or not any(isinstance(end, BaseTunerLayer) for end in ends):
        return
    embedding, output = (_base_of(end) for end in ends)
    if embedding.weight is output.weight:
        output.weight = nn.Parameter(output.weight.detach().clone())
        model.config.tie_word_embeddings = False


def _base_of(layer: Any) -> Any:
    return getattr(layer, "base_layer", layer)


def _trial(model: Any) -> torch.Tensor:
    vocab = model.config.get_text_config().vocab_size
    ids = torch.arange(_TRIAL_TOKENS)[None] * 7 % vocab
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits.float()


def _save(model: Any, dtype: torch.dtype, folder: Path) -> int:
    """Returns the number of parameters."""
    tied: set[str] = set()
    if model.config.tie_word_embeddings:
        tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    state: dict[str, torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = model.state_dict()
    for name, tensor in tensors.items():
        if name not in tied:
            state[name] = tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor
            if not bool(state[name].isfinite().all()):
                raise ConfigError(f"'{name}' does not fit into {dtype}", hint="`--dtype bfloat16` has a wider range")
    with quiet():
        model.save_pretrained(folder, state_dict=state)
    model.config.dtype = dtype  # `save_pretrained` writes down that of the model, which is float32
    model.config.save_pretrained(folder)
    return sum(tensor.numel() for tensor in state.values())
